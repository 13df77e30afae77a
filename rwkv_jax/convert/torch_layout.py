"""Where each of the authors' PyTorch tensors goes: the table of names, and the copy by it.

Their blocks are numbered modules, ours one stack with a leading depth axis; their linear weights
are [out, in], ours [in, out]; their five `time_maa_*` are rows of one `maa`.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Protocol

import jax
import numpy as np

from rwkv_jax.models import ClipConfig
from rwkv_jax.models.params import Params, abstract_params, flat_params

Shape = tuple[int, ...]


class ConversionError(ValueError):
    """Weights that cannot be converted; the message says which, why and what to do."""


@dataclasses.dataclass(frozen=True)
class Form:
    """How PyTorch lays out a tensor: ours reshaped to `shape`, then transposed by `axes`."""

    shape: str = "same"  # or "row" ([1, 1, D]), "grouped" ([D, 5 R]), "grid" ([1, H W, D])
    axes: Shape | None = None

    def torch_shape(self, ours: Shape) -> Shape:
        reshaped = {
            "same": lambda: ours,
            "row": lambda: (1, 1, *ours),
            "grouped": lambda: (ours[0], ours[1] * ours[2]),
            "grid": lambda: (1, ours[0] * ours[1], ours[2]),
        }[self.shape]()
        return reshaped if self.axes is None else tuple(reshaped[axis] for axis in self.axes)

    def to_ours(self, tensor: np.ndarray, ours: Shape) -> np.ndarray:
        if self.axes is not None:
            tensor = tensor.transpose(np.argsort(self.axes))
        return tensor.reshape(ours)


SAME = Form()
ROW = Form("row")
GROUPED = Form("grouped")
GRID = Form("grid")
LINEAR = Form(axes=(1, 0))  # [in, out] -> [out, in]
CONV = Form(axes=(3, 2, 0, 1))  # [P, P, C, D] -> [D, C, P, P]

Names = dict[str, tuple[Form, tuple[str, ...]]]  # our path -> form, their names


def _norm(ours: str, theirs: str) -> Names:
    return {
        f"{ours}/scale": (SAME, (f"{theirs}.weight",)),
        f"{ours}/bias": (SAME, (f"{theirs}.bias",)),
    }


def _block(channel_mix_k: str, channel_mix_r: str) -> Names:
    linears = {
        "spatial_mix": ("att", ("receptance", "key", "value", "gate", "output")),
        "channel_mix": ("ffn", ("key", "receptance", "value")),
    }
    return {
        **_norm("norm1", "ln1"),
        **_norm("norm2", "ln2"),
        **_norm("spatial_mix/head_norm", "att.ln_x"),
        **_norm("spatial_mix/key_norm", "att.key_norm"),
        **_norm("channel_mix/key_norm", "ffn.key_norm"),
        **{
            f"{ours}/{name}": (LINEAR, (f"{theirs}.{name}.weight",))
            for ours, (theirs, names) in linears.items()
            for name in names
        },
        "scale1": (SAME, ("gamma1",)),
        "scale2": (SAME, ("gamma2",)),
        "spatial_mix/maa_x": (ROW, ("att.time_maa_x",)),
        "spatial_mix/maa": (ROW, tuple(f"att.time_maa_{use}" for use in "wkvrg")),
        "spatial_mix/maa_w1": (GROUPED, ("att.time_maa_w1",)),
        "spatial_mix/maa_w2": (SAME, ("att.time_maa_w2",)),
        "spatial_mix/decay": (ROW, ("att.time_decay",)),
        "spatial_mix/decay_w1": (SAME, ("att.time_decay_w1",)),
        "spatial_mix/decay_w2": (SAME, ("att.time_decay_w2",)),
        "spatial_mix/bonus": (SAME, ("att.time_faaaa",)),
        "channel_mix/mix_k": (ROW, (channel_mix_k,)),
        "channel_mix/mix_r": (ROW, (channel_mix_r,)),
    }


SINGLE: Names = {
    "logit_scale": (SAME, ("logit_scale",)),
    "image/positions": (GRID, ("image_model.pos_embed",)),
    "image/cls_token": (ROW, ("image_model.cls_token",)),
    "image/patch_embed/kernel": (CONV, ("image_model.patch_embed.projection.weight",)),
    "image/patch_embed/bias": (SAME, ("image_model.patch_embed.projection.bias",)),
    **_norm("image/norm_in", "image_model.layers.0.ln0"),
    **_norm("image/norm_out", "image_model.ln1"),
    "text/embedding": (SAME, ("text_model.emb.weight",)),
    **_norm("text/norm_in", "text_model.blocks.0.ln0"),
    **_norm("text/norm_out", "text_model.ln_out"),
}
# Our prefix -> their prefix of a block, and the names inside it.
STACKED: dict[str, tuple[str, Names]] = {
    "image/blocks/": ("image_model.layers.", _block("ffn.spatial_mix_k", "ffn.spatial_mix_r")),
    "text/blocks/": ("text_model.blocks.", _block("ffn.time_maa_k", "ffn.time_maa_r")),
}


@dataclasses.dataclass(frozen=True)
class Piece:
    """One of their tensors: its name, and the part of ours that it fills."""

    name: str
    form: Form
    path: str
    index: Shape  # leading indices into ours: (), (layer,) or (layer, use)


def pieces(params: Params) -> Iterator[Piece]:
    """Every tensor that a model with these (possibly abstract) parameters takes."""
    for path, leaf in flat_params(params).items():
        if path in SINGLE:
            form, names = SINGLE[path]
            yield Piece(names[0], form, path, ())
            continue
        prefix = next(prefix for prefix in STACKED if path.startswith(prefix))
        theirs, block = STACKED[prefix]
        form, names = block[path.removeprefix(prefix)]
        for layer in range(leaf.shape[0]):
            for use, name in enumerate(names):
                index = (layer,) if len(names) == 1 else (layer, use)
                yield Piece(f"{theirs}{layer}.{name}", form, path, index)


class Tensor(Protocol):
    """What has a shape now and becomes an array when asked: an array, or one still in a file."""

    @property
    def shape(self) -> Shape: ...

    def __array__(self) -> np.ndarray: ...


def params_from_torch(config: ClipConfig, tensors: Mapping[str, Tensor]) -> Params:
    """The authors' state dict as our nested dict of float32 arrays.

    Raises:
        ConversionError: naming every missing, unexpected and wrongly shaped key, before any data
            is read; or every key whose values are not all finite.
    """
    abstract = abstract_params(config)
    wanted = {piece.name: piece for piece in pieces(abstract)}
    shapes = {path: leaf.shape for path, leaf in flat_params(abstract).items()}
    part = {name: shapes[piece.path][len(piece.index) :] for name, piece in wanted.items()}
    check_keys(
        {name: piece.form.torch_shape(part[name]) for name, piece in wanted.items()},
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
    )
    ours = {path: np.empty(shape, np.float32) for path, shape in shapes.items()}
    broken = []
    for name, piece in wanted.items():
        tensor = np.asarray(tensors[name], np.float32)
        if not np.isfinite(tensor).all():
            broken.append(name)
        ours[piece.path][piece.index] = piece.form.to_ours(tensor, part[name])
    if broken:
        raise ConversionError(f"the weights hold NaN or infinity in {', '.join(broken)}")
    treedef = jax.tree.structure(abstract)
    return jax.tree.unflatten(treedef, list(ours.values()))


def check_keys(wanted: dict[str, Shape], got: dict[str, Shape]) -> None:
    problems = {
        "missing": [f"{name} {wanted[name]}" for name in wanted if name not in got],
        "unexpected": [f"{name} {got[name]}" for name in got if name not in wanted],
        "wrongly shaped": [
            f"{name} {got[name]}, expected {wanted[name]}"
            for name in wanted
            if name in got and got[name] != wanted[name]
        ],
    }
    if any(problems.values()):
        told = "; ".join(
            f"{len(names)} {kind}: {', '.join(names)}" for kind, names in problems.items() if names
        )
        raise ConversionError(
            f"the weights do not belong to the configuration: {told}."
            " Check that both come from the same model."
        )
