"""An optimizer by name, one-cycle schedules, and which parameters each rule reaches.

The whole tree of parameters goes in; parameters that are not trained are `optax.MaskedNode` in the
state, which holds nothing. What else is in the state has its parameter's shape, but for Adafactor's
second moments: of a matrix [.., rows, cols], one [.., rows] and one [.., cols].
"""

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from rwkv_jax.models.params import flat_params
from rwkv_jax.training.config import OptimizerConfig
from rwkv_jax.training.hyperparameters import Adafactor, AdamW, Lion, Muon
from rwkv_jax.training.paths import Mask, check_all_found, found_in, map_paths
from rwkv_jax.training.state import Params
from rwkv_jax.training.trained import factor, trained_mask

# The products of a block, stacked [depth, in, out]. Not those of low rank, whose first values are
# near 0 by design, nor the embedding, the patches' kernel and vectors, which are no maps between
# features (Jordan et al.).
MUON_MATRICES = (
    r"/blocks/spatial_mix/(receptance|key|value|gate|output)$",
    r"/blocks/channel_mix/(receptance|key|value)$",
)
ADAMW_UPDATE_SIZE = 0.2  # root mean square of an AdamW update (arXiv 2502.16982, section 2.2)


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """One-cycle learning rate: cosine up to the peak, cosine down to almost nothing.

    Smith and Topin 2017, with PyTorch's cosine form. `steps` updates are counted from 0: step 0
    takes peak / div_factor, step round(warmup_share * steps) takes the peak.
    """
    return optax.cosine_onecycle_schedule(
        transition_steps=steps,
        peak_value=config.settings.peak_learning_rate,
        pct_start=config.warmup_share,
        div_factor=config.div_factor,
        final_div_factor=config.final_div_factor,
    )


def beta1_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Momentum goes down while the rate goes up, and back (cycle_momentum of PyTorch's OneCycleLR).

    Also a one-cycle curve: it starts at beta1_base, reaches beta1_peak at the peak rate, and ends
    at beta1_base (final_div_factor 1: end = start).

    Raises:
        TypeError: the optimizer is another than AdamW; only its momentum is cycled.
    """
    own = config.settings
    if not isinstance(own, AdamW):
        raise TypeError(f"only adamw cycles beta1, not {config.name}")
    return optax.cosine_onecycle_schedule(
        transition_steps=steps,
        peak_value=own.beta1_peak,
        pct_start=config.warmup_share,
        div_factor=own.beta1_peak / own.beta1_base,
        final_div_factor=1.0,
    )


def check_rules(config: OptimizerConfig, params: Params) -> None:
    """Checks the rules by path against the parameters that there are.

    Raises:
        PathRuleError: a pattern is found in no path of a trained parameter.
    """
    paths = list(flat_params(params))
    factors = [pattern for pattern, _ in config.learning_rate_multipliers]
    trained = flat_params(trained_mask(config, params))
    not_frozen = [path for path in paths if path.split("/")[0] != config.frozen]
    check_all_found("optimizer.learning_rate_multipliers", factors, not_frozen)
    for pattern in config.no_decay:  # each by itself: in what order they stand does not matter
        check_all_found("optimizer.no_decay", [pattern], [p for p in paths if trained[p]])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Global-norm clipping, the named optimizer, then the factors on the rate by path.

    `init` and `update` take trees of all parameters; updates of those not trained are 0.

    Raises:
        PathRuleError: from `init`, where a pattern is found in no parameter's path.
    """
    optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), _named(config, steps))
    if config.frozen is not None or config.learning_rate_multipliers:
        optimizer = optax.chain(
            optax.masked(optimizer, lambda tree: trained_mask(config, tree)),
            optax.stateless(lambda updates, _: _scaled_by_path(config, updates)),
        )

    def init(params: Params) -> optax.OptState:
        if jax.tree.leaves(params):  # optax.tree_map_params gives a placeholder without any
            check_rules(config, params)
        return optimizer.init(params)

    return optax.GradientTransformationExtraArgs(init, optimizer.update)


def _named(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    rate = learning_rate_schedule(config, steps)
    decayed = (lambda tree: _decay_mask(config, tree)) if config.no_decay else None
    match config.settings:
        case AdamW() as own:
            # Bias correction uses the current beta1, as PyTorch's AdamW does under a cycled beta1.
            adamw = optax.inject_hyperparams(
                optax.adamw, static_args="mask", hyperparam_dtype=jnp.float32
            )
            return adamw(
                learning_rate=rate,
                b1=beta1_schedule(config, steps),
                b2=own.beta2,
                eps=own.epsilon,
                weight_decay=own.weight_decay,
                mask=decayed,
            )
        case Lion() as own:
            return optax.lion(
                rate, b1=own.beta1, b2=own.beta2, weight_decay=own.weight_decay, mask=decayed
            )
        case Adafactor() as own:
            decay = own.weight_decay
            # optax's decay is not times the rate.
            return optax.adafactor(
                rate,
                decay_rate=own.decay_exponent,
                momentum=own.momentum,
                multiply_by_parameter_scale=False,
                weight_decay_rate=lambda count: decay * rate(count),
                weight_decay_mask=decayed,
            )
        case Muon() as own:
            # Not optax.contrib.muon: its AdamW half takes no mask of decay, and is Nesterov's.
            return optax.chain(
                optax.partition(
                    {
                        "muon": optax.chain(
                            optax.contrib.scale_by_muon(
                                beta=own.momentum, weight_dimension_numbers=_each_layer
                            ),
                            optax.stateless(lambda updates, _: jax.tree.map(_resized, updates)),
                        ),
                        "adamw": optax.scale_by_adam(own.beta1, own.beta2, own.epsilon),
                    },
                    lambda tree: map_paths(_muon_or_adamw, tree),
                ),
                optax.add_decayed_weights(own.weight_decay, decayed),
                optax.scale_by_learning_rate(rate),
            )


def _scaled_by_path(config: OptimizerConfig, updates: Params) -> Params:
    return jax.tree.map(
        lambda update, by: jnp.zeros_like(update) if by == 0 else by * update,
        updates,
        map_paths(lambda path: factor(config, path), updates),
    )


def _decay_mask(config: OptimizerConfig, params: Params) -> Mask:
    return map_paths(lambda path: found_in(config.no_decay, path) is None, params)


def _muon_or_adamw(path: str) -> str:
    return "adamw" if found_in(MUON_MATRICES, path) is None else "muon"


def _each_layer(updates: Params) -> Params:
    """Layers are stacked [depth, in, out]: an axis that is named neither way is one of a batch."""
    return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(-2, -1), updates)


def _resized(update: jax.Array) -> jax.Array:
    """An orthogonal [in, out] has entries of size 1 / sqrt(max(in, out)): brought to AdamW's."""
    return ADAMW_UPDATE_SIZE * max(update.shape[-2:]) ** 0.5 * update
