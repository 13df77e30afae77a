"""What several runs share."""

from rwkv_jax.evaluation.config import (
    EvalConfig,
    LinearProbeConfig,
    RetrievalConfig,
    ZeroShotConfig,
)

# Judged on pictures of an artist (noto) that no run has seen. Chance R@10: 10/1395 and 10/241.
OPEN_EMOJI_EVAL = EvalConfig(
    retrieval=(
        RetrievalConfig("open_emoji", "new_artist"),
        RetrievalConfig("open_emoji", "new_concepts"),
    ),
    zero_shot=(
        ZeroShotConfig("open_emoji", "new_artist", "concept"),
        ZeroShotConfig("open_emoji", "new_artist", "group"),
        ZeroShotConfig("open_emoji", "new_concepts", "group"),
    ),
    linear_probe=(LinearProbeConfig("open_emoji", "train", "new_artist", "group"),),
)
