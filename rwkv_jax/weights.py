"""Weights on disk: a folder with `model.json` and `params/`, written whole or not at all.

Parameters are kept as a nested dict of float32 arrays ({"image": {"blocks": ...}}): a training
run's checkpoints hold the same dict, so either can be read without the code that trained it.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from rwkv_jax.models import ClipConfig, RwkvClip

Params = dict[str, Any]  # nested; the leaves are arrays or ShapeDtypeStructs


def abstract_params(config: ClipConfig) -> Params:
    """Shapes and dtypes of a model's parameters; allocates nothing."""
    return jax.eval_shape(lambda: params_to_dict(nnx.state(RwkvClip(config, rngs=nnx.Rngs(0)))))


def params_to_dict(state: nnx.State) -> Params:
    """A model's state as the nested dict that is saved."""
    return nnx.to_pure_dict(state)


def params_from_dict(state: nnx.State, params: Params) -> nnx.State:
    """`state` (of arrays or ShapeDtypeStructs) with its values replaced by `params`.

    Raises:
        ValueError: naming every parameter that is missing, unexpected or of another shape.
    """
    check_same_model(params_to_dict(state), params)
    leaves = jax.tree.leaves(params)
    return jax.tree.unflatten(jax.tree.structure(state), leaves)


def model_from_params(
    config: ClipConfig, params: Params, *, dtype: DTypeLike = jnp.float32
) -> RwkvClip:
    """The model with these parameters, without initialising any."""
    model = nnx.eval_shape(lambda: RwkvClip(config, dtype=dtype, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, params_from_dict(state, params))


def check_same_model(expected: Params, got: Params) -> None:
    """Raises ValueError naming every parameter in which the two differ."""
    want = {jax.tree_util.keystr(k): v.shape for k, v in _leaves(expected)}
    have = {jax.tree_util.keystr(k): v.shape for k, v in _leaves(got)}
    problems = [f"{name} {want[name]} is missing" for name in want if name not in have]
    problems += [f"{name} {have[name]} is unexpected" for name in have if name not in want]
    problems += [
        f"{name} is {have[name]}, expected {want[name]}"
        for name in want
        if name in have and have[name] != want[name]
    ]
    if problems:
        raise ValueError("the parameters belong to another model: " + "; ".join(problems))


def _leaves(params: Params) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_flatten_with_path(params)[0]
