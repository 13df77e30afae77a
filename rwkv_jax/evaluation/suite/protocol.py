"""Whose way of measuring is followed, and which quirks of the authors' code are reproduced."""

import dataclasses

from rwkv_jax.evaluation.catalog.entry import MODES, Mode

# What each does stands in rwkv_jax/evaluation/reference_quirks.py.
SWITCHES = ("caption_prefix", "integer_logits", "phantom_rows")


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How the suite measures.

    Attributes:
      mode: whose parts of the sets are taken.
      switches: quirks of the authors' code that are on: `caption_prefix` on both retrieval sets,
        `integer_logits` on all zero-shot sets, `phantom_rows` on ImageNet's zero-shot.
    """

    mode: Mode = "clip"
    switches: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode {self.mode!r} is none of {', '.join(MODES)}")
        if strangers := set(self.switches) - set(SWITCHES):
            raise ValueError(f"switch {min(strangers)!r} is none of {', '.join(SWITCHES)}")
