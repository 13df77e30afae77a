"""A run's whole configuration: typed, frozen, one file a run, overridden field by field."""

import contextlib
import dataclasses
import importlib.util
import json
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rwkv_jax.data.catalog import open_dataset, open_mixture
from rwkv_jax.data.config import LoaderConfig, MixturePart
from rwkv_jax.data.records import Source
from rwkv_jax.data.tokenizer import VOCABULARY_SIZE
from rwkv_jax.evaluation.config import EvalConfig
from rwkv_jax.models.config import SIGLIP_LOGIT_BIAS, SIGLIP_LOGIT_SCALE, ClipConfig
from rwkv_jax.training.config import (
    CheckpointConfig,
    LossConfig,
    MeshConfig,
    OptimizerConfig,
    Positives,
    require,
)
from rwkv_jax.wkv import Kernels


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the field or the file."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What a run trains on.

    Attributes:
        dataset: a name of the catalog, such as "open_emoji", "records:DIR" or "folder:PATH".
        split: of that dataset.
        data_dir: the folder that prepared datasets lie in.
        loader: how records become batches.
        mixture: several datasets with weights, instead of `dataset`, which is "" then.
    """

    dataset: str
    split: str
    loader: LoaderConfig
    data_dir: str = "data"
    mixture: tuple[MixturePart, ...] = ()

    def __post_init__(self) -> None:
        require(
            bool(self.dataset) != bool(self.mixture),
            "data.dataset",
            self.dataset,
            f'must name a dataset, or be "" beside a data.mixture (of {len(self.mixture)} now)',
        )

    def open(self) -> Source:
        """The records to train on.

        Raises:
            DatasetError: see `open_dataset`.
        """
        if self.mixture:
            return open_mixture(self.mixture, self.data_dir)
        return open_dataset(self.dataset, self.split, self.data_dir)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One run.

    Attributes:
        batch_size: pairs an update, over all devices.
        steps: updates in all; the schedule is laid out over them.
        micro_batches: parts that a batch is embedded in, one after the other; the gradient is that
            of the whole batch, for the memory of a part and the time of one more forward pass.
        loss: softmax or sigmoid, in full or round a ring.
        positives: "pair": only a picture's own text is right for it; "concept": the texts of all
            pictures of the same concept in the batch are.
        precision: "auto" takes bfloat16 matmuls on accelerators and float32 on CPUs.
        kernels: "auto" takes kernels of our own where they serve (docs/kernels.md); "none" leaves
            all to XLA, for whoever suspects one.
        log_every: steps between two lines of metrics.
        mesh: how the devices are laid out; a restarted run may have another.
        start_from: weights to begin with instead of random ones: what `rwkv_jax.load` takes.
        eval: what is measured after the last step.
        eval_every: measures it every so many steps as well.
        profile: first and last step of a profiler trace, into RUN/profile; None for none.
    """

    model: ClipConfig
    data: DataConfig
    batch_size: int
    steps: int
    eval: EvalConfig
    eval_every: int | None = None
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    positives: Positives = "pair"
    micro_batches: int = 1
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    kernels: Kernels = "auto"
    seed: int = 0
    log_every: int = 50
    start_from: str | None = None
    profile: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        require(self.batch_size >= 2, "batch_size", self.batch_size, "must be 2 or more")
        require(self.steps >= 1, "steps", self.steps, "must be 1 or more")
        require(
            self.micro_batches >= 1 and self.batch_size % self.micro_batches == 0,
            "micro_batches",
            self.micro_batches,
            f"must be 1 or more, and divide batch_size = {self.batch_size}",
        )
        has_bias, wants_bias = self.model.logit_bias is not None, self.loss.kind == "sigmoid"
        require(
            has_bias or not wants_bias,
            "loss.kind",
            self.loss.kind,
            "needs a model with a bias, but model.logit_bias = None; SigLIP starts with"
            f" model.logit_bias = {SIGLIP_LOGIT_BIAS:g}, model.logit_scale ="
            f" {SIGLIP_LOGIT_SCALE:.4f}",
        )
        require(
            wants_bias or not has_bias,
            "loss.kind",
            self.loss.kind,
            f"has no use for a bias, but model.logit_bias = {self.model.logit_bias}: set it to None"
            " or take loss.kind = 'sigmoid'",
        )
        known = typing.get_args(Kernels)
        require(self.kernels in known, "kernels", self.kernels, f"must be one of {known}")
        require(self.log_every >= 1, "log_every", self.log_every, "must be 1 or more")
        require(
            self.eval_every is None or self.eval_every >= 1,
            "eval_every",
            self.eval_every,
            "must be 1 or more steps, or None",
        )
        require(
            self.eval.params == "live" or self.optimizer.ema_decay is not None,
            "eval.params",
            self.eval.params,
            "no average is kept where optimizer.ema_decay is None; set it, say to 0.999",
        )
        frozen = self.optimizer.frozen
        drop_path = 0.0 if frozen is None else getattr(self.model, frozen).drop_path
        require(
            drop_path == 0,
            f"model.{frozen}.drop_path",
            drop_path,
            f"a locked tower (optimizer.frozen = {frozen!r}) gives whole features; set it to 0",
        )
        require(
            self.profile is None or 1 <= self.profile[0] <= self.profile[1],
            "profile",
            self.profile,
            "must be the first and the last step to trace, counted from 1, or None",
        )
        require(0 <= self.seed < 2**32, "seed", self.seed, "must be in [0, 2**32)")
        require(
            self.model.text.vocab_size >= VOCABULARY_SIZE,
            "model.text.vocab_size",
            self.model.text.vocab_size,
            f"must be {VOCABULARY_SIZE} at least, the tokens of CLIP's vocabulary",
        )
        for field, data, model in (
            ("image_size", self.data.loader.image_size, self.model.image.image_size),
            ("context_length", self.data.loader.context_length, self.model.text.context_length),
        ):
            require(
                data == model,
                f"data.loader.{field}",
                data,
                f"must equal the model's {field}, {model}",
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: tuples become lists; the optimizer's own defaults are filled in."""
        values = dataclasses.asdict(self)
        values["optimizer"] |= dataclasses.asdict(self.optimizer.settings)
        return json.loads(json.dumps(values))


def load_config(path: str | Path) -> RunConfig:
    """Imports a config file, a Python file that sets `config = RunConfig(...)`, and returns that.

    Raises:
        ConfigError: there is no such file, it fails, or it sets no `config`.
    """
    path = Path(path)
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise ConfigError(
            f"config file {path} does not exist"
            + (f"; there are {', '.join(near)}" if near else "; see configs/ of this project")
        )
    spec = importlib.util.spec_from_file_location(f"rwkv_jax_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"config file {path} is no Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))  # configs share configs/common.py
    try:
        spec.loader.exec_module(module)
    except (ValueError, TypeError, SyntaxError, ImportError, NameError, AttributeError) as error:
        raise ConfigError(f"config file {path}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    config = getattr(module, "config", None)
    if not isinstance(config, RunConfig):
        raise ConfigError(
            f"config file {path} sets config = {config!r}: it must set config = RunConfig(...)"
        )
    return config


def override(config: RunConfig, arguments: Sequence[str]) -> RunConfig:
    """Applies dotted command-line overrides, such as ["--optimizer.weight-decay", "0.1"].

    An unknown key ends the process with status 2 and a message that names it (tyro's).

    Raises:
        ConfigError: a value is out of its range; the message names the field.
    """
    import tyro  # here: whoever overrides nothing needs no parser of command lines

    try:
        return tyro.cli(RunConfig, default=config, args=list(arguments), prog="train.py")
    except ValueError as error:
        raise ConfigError(str(error)) from error


# Fields that a restarted run may change: they change neither the data's order nor, but for the
# rounding of sums on another mesh, by other kernels or computed again, the parameters.
FREE_TO_CHANGE = (
    *("log_every", "checkpoint", "eval", "eval_every", "kernels", "mesh", "profile"),
    *("data.data_dir", "data.loader.workers", "data.loader.prefetch"),
    *("model.image.remat", "model.text.remat", "model.image.unroll", "model.text.unroll"),
)


def differences(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The fields in which two `to_dict` forms differ, as "field: saved -> now" lines.

    Fields of FREE_TO_CHANGE are passed over. `saved` may be an earlier version's: fields that there
    were not yet have their defaults, which do what was done before.
    """
    return _differences(_as_saved_today(saved), now, "")


def _as_saved_today(saved: dict[str, Any]) -> dict[str, Any]:
    values = _filled(RunConfig, saved)
    with contextlib.suppress(KeyError, ValueError):  # what does not fit shows as a difference
        values["model"] = ClipConfig.from_dict(saved["model"]).to_dict()
    return json.loads(json.dumps(values, default=dataclasses.asdict))


def _filled(cls: type, saved: dict[str, Any]) -> dict[str, Any]:
    values = dict(saved)
    types = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(types[field.name]):
            if isinstance(values.get(field.name, {}), dict):
                values[field.name] = _filled(types[field.name], values.get(field.name, {}))
        elif field.default is not dataclasses.MISSING:
            values.setdefault(field.name, field.default)
        elif field.default_factory is not dataclasses.MISSING:
            values.setdefault(field.name, field.default_factory())
    return values


def _differences(saved: dict[str, Any], now: dict[str, Any], prefix: str) -> list[str]:
    lines = []
    for name in sorted(saved.keys() | now.keys()):
        field = f"{prefix}{name}"
        if field in FREE_TO_CHANGE or saved.get(name) == now.get(name):
            continue
        before, after = saved.get(name), now.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += _differences(before, after, f"{field}.")
        else:
            lines.append(f"{field}: {before!r} -> {after!r}")
    return lines
