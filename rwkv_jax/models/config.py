"""What a model is made of, as data: frozen, validated, JSON in and out."""

import dataclasses
import math
import typing
from typing import Any, Literal

# What a backward pass recomputes of each block: nothing; all but the block's input; all but the
# results of matrix products and of the WKV.
Remat = Literal["none", "block", "dots"]
_REMAT_OF_BOOL = {False: "none", True: "block"}  # as configurations said it before

CLIP_LOGIT_SCALE = math.log(1 / 0.07)  # CLIP (arXiv 2103.00020), section 2.5
SIGLIP_LOGIT_SCALE = math.log(10.0)  # SigLIP (arXiv 2303.15343), section 3.2
SIGLIP_LOGIT_BIAS = -10.0  # likewise: nearly all pairs are wrong ones
_MOST_LOGIT_SCALE = 20.0  # far beyond ln 100, where CLIP clips it; exp of 88 is infinite


@dataclasses.dataclass(frozen=True)
class ImageConfig:
    """The image encoder; the defaults are RWKV-CLIP-B/32's.

    `image_size` fixes the grid of learned positions; other sizes are encoded by resizing them.
    """

    image_size: int = 224  # pixels a side
    patch_size: int = 32
    width: int = 640
    heads: int = 8
    depth: int = 12
    hidden_rate: int = 5  # channel mix: hidden = hidden_rate * width
    drop_path: float = 0.0  # rate of the last block; grows linearly from 0 at the first
    with_cls_token: bool = False
    output_cls_token: bool = False  # the feature: the cls token, not the mean of the patches
    layer_scale: float | None = None  # initial factor of every residual branch
    post_norm: bool = False
    key_norm: bool = False
    remat: Remat = "dots"  # quicker than "none" on a CPU, and smaller: docs/remat.md
    unroll: bool | None = None  # no loop over blocks; None: on a GPU, where a step takes 0.9

    def __post_init__(self) -> None:
        _check_positive(self, "image_size", "patch_size", "width", "heads", "depth", "hidden_rate")
        _check_heads(self)
        _check_rate(self)
        _check_remat(self)
        if self.output_cls_token and not self.with_cls_token:
            raise ValueError(
                "ImageConfig.output_cls_token=True needs with_cls_token=True, got False"
            )

    @property
    def grid(self) -> int:
        """Patches a side."""
        return -(-self.image_size // self.patch_size)

    @property
    def hidden(self) -> int:
        return self.hidden_rate * self.width


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The text encoder; the defaults are RWKV-CLIP-B/32's."""

    vocab_size: int = 49408
    context_length: int = 77
    width: int = 640
    heads: int = 10
    depth: int = 6
    hidden: int = 2240  # 3.5 * width, rounded down to a multiple of 32
    head_size_divisor: int = 8  # the WKV's group norm takes eps = 1e-5 * head_size_divisor**2
    drop_path: float = 0.0
    remat: Remat = "dots"
    unroll: bool | None = None

    def __post_init__(self) -> None:
        _check_positive(
            self,
            *("vocab_size", "context_length", "width", "heads", "depth", "hidden"),
            "head_size_divisor",
        )
        _check_heads(self)
        _check_rate(self)
        _check_remat(self)


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """Both encoders; their widths agree, because features are compared without a projection.

    A sigmoid loss wants a bias: `logit_scale=SIGLIP_LOGIT_SCALE, logit_bias=SIGLIP_LOGIT_BIAS`.
    """

    image: ImageConfig = dataclasses.field(default_factory=ImageConfig)
    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    logit_scale: float = CLIP_LOGIT_SCALE  # initial, a logarithm
    logit_bias: float | None = None  # initial; None: there is no such parameter

    def __post_init__(self) -> None:
        if self.image.width != self.text.width:
            raise ValueError(
                "ClipConfig.image.width and ClipConfig.text.width must agree (the features share"
                f" one space), got {self.image.width} and {self.text.width}"
            )
        if not abs(self.logit_scale) <= _MOST_LOGIT_SCALE:  # nor a NaN
            raise ValueError(
                f"ClipConfig.logit_scale = {self.logit_scale}: it is a logarithm, within"
                f" {_MOST_LOGIT_SCALE:g} of 0 (CLIP begins with {CLIP_LOGIT_SCALE:.4f})"
            )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able nested dict."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ClipConfig":
        """The inverse of `to_dict`; also reads what was saved by earlier versions: `remat` as true
        or false, nothing of `unroll`.

        Raises:
            ValueError: unknown or missing fields, values of a wrong type or out of range.
        """
        if not isinstance(values, dict):
            raise ValueError(
                f"a model's config must be read from a dict, got {type(values).__name__}"
            )
        # Models saved before they could have a bias say nothing of logits.
        values = {"logit_scale": CLIP_LOGIT_SCALE, "logit_bias": None, **values}
        parts = {"image": ImageConfig, "text": TextConfig}
        built = {name: _build(parts[name], values[name]) for name in parts if name in values}
        return _build(cls, values | built)


def rwkv_clip_b32() -> ClipConfig:
    """RWKV-CLIP-B/32: 149,561,601 parameters. Source: model_config/RWKV_CLIP_B32.json."""
    return ClipConfig(image=ImageConfig(patch_size=32, drop_path=0.3))


def rwkv_clip_b16() -> ClipConfig:
    """RWKV-CLIP-B/16: patches of 16, else as B/32. Source: model_config/RWKV_CLIP_B16.json."""
    return ClipConfig(image=ImageConfig(patch_size=16, drop_path=0.3))


def _build(cls: type, values: dict[str, Any]) -> Any:
    types = typing.get_type_hints(cls)
    if not isinstance(values, dict):
        raise ValueError(f"{cls.__name__} must be read from a dict, got {type(values).__name__}")
    if "unroll" in types:  # models saved before there was a choice say nothing of it
        values = {"unroll": None, **values}
    unknown = sorted(set(values) - set(types))
    missing = sorted(set(types) - set(values))
    if unknown or missing:
        raise ValueError(f"{cls.__name__}: unknown fields {unknown}, missing fields {missing}")
    if isinstance(values.get("remat"), bool):
        values = values | {"remat": _REMAT_OF_BOOL[values["remat"]]}
    for name, value in values.items():
        if typing.get_origin(types[name]) is Literal:
            continue  # its own check names what it may be
        allowed = typing.get_args(types[name]) or (types[name],)
        fits = type(value) in allowed or (type(value) is int and float in allowed)
        if not fits:
            wanted = " or ".join(kind.__name__ for kind in allowed)
            raise ValueError(f"{cls.__name__}.{name} must be {wanted}, got {value!r}")
    return cls(**values)


def _check_positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value < 1:
            raise ValueError(f"{type(config).__name__}.{name} must be at least 1, got {value}")


def _check_heads(config: Any) -> None:
    head_size, rest = divmod(config.width, config.heads)
    if rest or head_size % 4:
        raise ValueError(
            f"{type(config).__name__}: width / heads must be a multiple of 4 (the token shift"
            f" splits each head), got width={config.width} and heads={config.heads}"
        )


def _check_rate(config: Any) -> None:
    if not 0.0 <= config.drop_path < 1.0:
        raise ValueError(
            f"{type(config).__name__}.drop_path must be in [0, 1), got {config.drop_path}"
        )


def _check_remat(config: Any) -> None:
    known = typing.get_args(Remat)
    if config.remat not in known:
        raise ValueError(
            f"{type(config).__name__}.remat must be one of {', '.join(known)}, got {config.remat!r}"
        )
