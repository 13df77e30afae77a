"""What a person can set about training, validated where it is set."""

import dataclasses
from typing import Literal


def require(condition: bool, field: str, value: object, wanted: str) -> None:
    """Raises a ValueError that names the field, its value and what it should be."""
    if not condition:
        raise ValueError(f"{field} = {value!r}: {wanted}")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW under a one-cycle schedule; the defaults are RWKV-CLIP's own recipe.

    Source: the paper's training settings and the arguments of the authors' training script.

    Attributes:
        peak_learning_rate: reached after `warmup_share` of the steps.
        warmup_share: share of all steps in which the rate climbs, in (0, 1).
        div_factor: the first rate is peak / div_factor.
        final_div_factor: the last rate is peak / (div_factor * final_div_factor).
        weight_decay: decoupled, on every parameter (the recipe excludes none).
        beta1_base: beta1 at the first and the last step.
        beta1_peak: beta1 at the peak rate (momentum is cycled against the rate).
        beta2: decay of the second moment.
        epsilon: Adam's, outside the square root.
        clip_norm: gradients are scaled down to this global norm.
    """

    peak_learning_rate: float = 1e-3
    warmup_share: float = 0.1
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    weight_decay: float = 0.2
    beta1_base: float = 0.95
    beta1_peak: float = 0.85
    beta2: float = 0.98
    epsilon: float = 1e-8
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("peak_learning_rate", "div_factor", "final_div_factor", "epsilon"):
            value = getattr(self, name)
            require(value > 0, f"optimizer.{name}", value, "must be above 0")
        require(self.clip_norm > 0, "optimizer.clip_norm", self.clip_norm, "must be above 0")
        require(
            0 < self.warmup_share < 1,
            "optimizer.warmup_share",
            self.warmup_share,
            "must lie strictly between 0 and 1",
        )
        require(
            self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "must be 0 or more"
        )
        for name in ("beta1_base", "beta1_peak", "beta2"):
            value = getattr(self, name)
            require(0 < value < 1, f"optimizer.{name}", value, "must lie strictly between 0 and 1")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """How often a run is saved, and how many of its checkpoints stay.

    Attributes:
        every: steps between two checkpoints; the last step is always saved.
        keep: newest checkpoints that stay on disk.
    """

    every: int = 1000
    keep: int = 3

    def __post_init__(self) -> None:
        require(self.every >= 1, "checkpoint.every", self.every, "must be 1 or more steps")
        require(self.keep >= 1, "checkpoint.keep", self.keep, "must be 1 or more")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How devices are laid out; see `rwkv_jax.mesh` for what each axis splits.

    Attributes:
        data: parts of the batch, each with all parameters.
        fsdp: parts of the batch that share one copy of the parameters between them.
        tensor: parts of the heads and hidden channels.
        One of the three may be -1: all devices that the other two leave.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        sizes = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        for name, size in sizes.items():
            require(size >= 1 or size == -1, f"mesh.{name}", size, "must be 1 or more, or -1")
        free = [name for name, size in sizes.items() if size == -1]
        require(
            len(free) <= 1, " and ".join(f"mesh.{name}" for name in free), -1, "only one may be -1"
        )


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Which contrastive loss, and how it is computed; every form of a kind gives the same number.

    Attributes:
        kind: "softmax" (CLIP's) or "sigmoid" (SigLIP's, arXiv 2303.15343; the model needs a
            `logit_bias`).
        form: "full" has all B x B logits of the global batch at once; "ring" passes texts from
            device to device and has [pairs a device, chunk] scores at a time.
        chunk: texts at a time in a ring; divides the pairs a device where they are more.
        authors_devices: divides the gradient of both towers, not that of logit scale and bias; 1
            leaves it as it is. The authors' code, on N GPUs, averages over GPUs the gradients that
            each has of its own features in the global loss, where their sum is the gradient: N
            here reproduces that on any number of devices. It changes what `optimizer.clip_norm`
            and `optimizer.epsilon` do, not the direction of the gradient in a tower.
    """

    kind: Literal["softmax", "sigmoid"] = "softmax"
    form: Literal["full", "ring"] = "full"
    chunk: int = 1024
    authors_devices: int = 1

    def __post_init__(self) -> None:
        for name, known in (("kind", ("softmax", "sigmoid")), ("form", ("full", "ring"))):
            value = getattr(self, name)
            require(value in known, f"loss.{name}", value, f"must be one of {', '.join(known)}")
        require(self.chunk >= 1, "loss.chunk", self.chunk, "must be 1 or more texts")
        require(
            self.authors_devices >= 1,
            "loss.authors_devices",
            self.authors_devices,
            "must be 1 or more",
        )


Positives = Literal["pair", "concept"]
