"""AdamW with the rate and beta1 cycled against each other, as RWKV-CLIP was trained."""

import jax.numpy as jnp
import optax

from rwkv_jax.training.config import OptimizerConfig


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """One-cycle learning rate: cosine up to the peak, cosine down to almost nothing.

    Smith and Topin 2017, with PyTorch's cosine form. `steps` updates are counted from 0: step 0
    takes peak / div_factor, step round(warmup_share * steps) takes the peak.
    """
    return optax.cosine_onecycle_schedule(
        transition_steps=steps,
        peak_value=config.peak_learning_rate,
        pct_start=config.warmup_share,
        div_factor=config.div_factor,
        final_div_factor=config.final_div_factor,
    )


def beta1_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Momentum goes down while the rate goes up, and back (cycle_momentum of PyTorch's OneCycleLR).

    Also a one-cycle curve: it starts at beta1_base, reaches beta1_peak at the peak rate, and ends
    at beta1_base (final_div_factor 1: end = start).
    """
    return optax.cosine_onecycle_schedule(
        transition_steps=steps,
        peak_value=config.beta1_peak,
        pct_start=config.warmup_share,
        div_factor=config.beta1_peak / config.beta1_base,
        final_div_factor=1.0,
    )


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Global-norm clipping, then AdamW with both schedules injected as hyperparameters.

    Bias correction uses the current beta1, as PyTorch's AdamW does under a cycled beta1.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.inject_hyperparams(optax.adamw, hyperparam_dtype=jnp.float32)(
            learning_rate=learning_rate_schedule(config, steps),
            b1=beta1_schedule(config, steps),
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
        ),
    )
