"""One update: a batch in, the next state and its metrics out."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from rwkv_jax.compiler_options import compiler_options
from rwkv_jax.data.preprocess import normalise
from rwkv_jax.models import RwkvClip
from rwkv_jax.models.layers import by_itself
from rwkv_jax.models.params import bind
from rwkv_jax.training.config import LossConfig, OptimizerConfig, Positives
from rwkv_jax.training.ema import next_ema
from rwkv_jax.training.losses import PairLosses, make_loss, pair_labels
from rwkv_jax.training.micro_batches import loss_and_gradients as micro_batched
from rwkv_jax.training.sharding import batch_sharding, replicated
from rwkv_jax.training.state import Params, TrainState
from rwkv_jax.training.trained import apply_updates, join, split, with_zeros
from rwkv_jax.wkv import platform

Metrics = dict[str, Float[Array, ""]]

Features = tuple[Float[Array, "B D"], Float[Array, "B D"]]

# CLIP: softmax logits are never scaled by more than 100. SigLIP sets no bound, and its published
# models are beyond that.
LOGIT_SCALE_RANGE = (0.0, math.log(100.0))


def norms(name: str, tree: Params) -> Metrics:
    """Global norm of each top-level entry (a tower) of a parameter-shaped tree."""
    return {f"train/{name}/{tower}": optax.tree.norm(tree[tower]) for tower in tree}


def each_once(
    before: Params, params: Params, opt_state: Any, updates: Params
) -> tuple[Params, Any, Params]:
    """The parameters, the optimizer's state, and what the parameters moved by, whose norms add no
    pass over memory to an update's seven, and no copy.

    A GPU's XLA does not write in place what it also sums up, so all three are kept apart from sums
    there. Elsewhere XLA would work the updates out once more for their norm, from moments that it
    has just written: what parameters moved by is their difference then, and rounded as they are.
    """
    if platform() == "gpu":
        return by_itself((params, opt_state, updates))
    return params, opt_state, jax.tree.map(jnp.subtract, params, before)


def loss_by_kind(
    losses: Float[Array, " B"], kind: Int[Array, " B"], text_kinds: Sequence[str]
) -> Metrics:
    """The mean loss of the pairs with each kind of text, NaN where the batch has none; their share.

    Example: losses [1, 3, 5] of kinds [0, 0, 1] give 2 and 5, with shares of 2/3 and 1/3.
    """
    found = {}
    for index, name in enumerate(text_kinds):
        chosen = kind == index
        found[f"train/loss/{name}"] = jnp.mean(losses, where=chosen)
        found[f"train/text_share/{name}"] = jnp.mean(chosen)
    return found


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """A compiled update, called as `step(state, batch)` under its mesh: the WKV asks for it."""

    compiled: Any  # jax.jit's wrapper, which has no public type
    mesh: Mesh

    def __call__(self, state: TrainState, batch: dict[str, Array]) -> tuple[TrainState, Metrics]:
        with jax.set_mesh(self.mesh):
            return self.compiled(state, batch)

    def lower(self, state: Any, batch: Any) -> jax.stages.Lowered:
        """The program for arguments of these shapes (jax.ShapeDtypeStruct), nothing run."""
        with jax.set_mesh(self.mesh):
            return self.compiled.lower(state, batch)


def make_train_step(
    graphdef: nnx.GraphDef[RwkvClip],
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    rules: OptimizerConfig,
    loss: LossConfig,
    positives: Positives,
    micro_batches: int = 1,
    text_kinds: Sequence[str] = (),
    seed: int,
    mesh: Mesh,
    state_sharding: Any,
) -> TrainStep:
    """A `step(state, batch)`, compiled when first called; it takes the state as donated.

    `batch` holds image uint8 [B, H, W, 3], text int32 [B, L], concept and kind int32 [B], split
    over the mesh's data and fsdp axes; the loss is over the global batch. The key of drop path is
    folded from `seed` and the state's step, so a restarted run draws what it would have drawn.

    Args:
        rules: what the optimizer was made from; says what is frozen and whether an average is kept.
        text_kinds: the names that the batch's `kind` counts; the loss of each is a metric.
        micro_batches: parts that a batch is embedded in; the gradient stays that of the whole.
        state_sharding: a tree of shardings like the state, in and out; see
            `rwkv_jax.training.sharding.state_shardings`.

    Raises (when traced):
        ValueError: `loss.chunk` does not divide the pairs of a device, or `micro_batches` the
            batch.
    """
    loss_of_features = make_loss(loss)

    def loss_and_gradients(
        params: Params, batch: dict[str, Array], key: Array
    ) -> tuple[PairLosses, Params]:
        labels = pair_labels(batch["concept"], positives)
        encoded = {name: batch[name] for name in ("image", "text")}

        trained, frozen = split(rules, params)

        def embed(trained: Params, batch: dict[str, Array], key: Array) -> Features:
            model = bind(graphdef, join(trained, frozen))
            image, text, _ = model(normalise(batch["image"]), batch["text"], key=key)
            return image, text

        def loss_of(trained: Params, features: Features) -> PairLosses:
            return loss_of_features(*features, join(trained, frozen), labels)

        if micro_batches > 1:
            value, gradients = micro_batched(
                embed, loss_of, trained, encoded, key, count=micro_batches
            )
        else:
            value, gradients = jax.value_and_grad(
                lambda trained: loss_of(trained, embed(trained, encoded, key)), has_aux=True
            )(trained)
        return PairLosses(*value), with_zeros(gradients, params)

    def step(state: TrainState, batch: dict[str, Array]) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        losses, gradients = loss_and_gradients(state.params, batch, key)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = apply_updates(rules, state.params, updates)
        params, opt_state, moved = each_once(state.params, params, opt_state, updates)
        if loss.kind == "softmax":
            params["logit_scale"] = jnp.clip(params["logit_scale"], *LOGIT_SCALE_RANGE)
        ema = next_ema(state.ema, params, rules.ema_decay, state.step)
        metrics = {
            "train/loss": losses.mean,
            **loss_by_kind(losses.of_pairs, batch["kind"], text_kinds),
            "train/learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "train/logit_scale": jnp.exp(params["logit_scale"]),
            "train/gradient_norm": optax.tree.norm(gradients),
            **norms("gradient_norm", gradients),
            **norms("parameter_norm", params),
            **norms("update_norm", moved),
        }
        if loss.kind == "sigmoid":
            metrics["train/logit_bias"] = params["logit_bias"]
        return TrainState(state.step + 1, params, opt_state, ema), metrics

    with jax.set_mesh(mesh):  # the platform is the mesh's
        options = compiler_options()
    compiled = jax.jit(
        step,
        in_shardings=(state_sharding, batch_sharding(mesh)),
        out_shardings=(state_sharding, replicated(mesh)),
        donate_argnums=0,
        compiler_options=options,
    )

    return TrainStep(compiled, mesh)
