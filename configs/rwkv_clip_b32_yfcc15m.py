"""RWKV-CLIP-B/32 on YFCC15M, the paper's recipe (arXiv 2406.06973; the authors' script)."""

from rwkv_jax.config import DataConfig, RunConfig
from rwkv_jax.data.config import LoaderConfig
from rwkv_jax.evaluation.config import EvalConfig
from rwkv_jax.models import rwkv_clip_b32
from rwkv_jax.training.config import CheckpointConfig, LossConfig, OptimizerConfig

PAIRS = 15_061_515  # YFCC15M as the authors could download it
BATCH = 4096  # 8 GPUs * 512
EPOCHS = 32

config = RunConfig(
    model=rwkv_clip_b32(),
    data=DataConfig(
        # Any dataset of the catalog with these three kinds of text; see docs/data.md.
        dataset="records:data/yfcc15m",
        split="train",
        loader=LoaderConfig(
            image_size=224,
            context_length=77,
            text_probabilities={"raw": 1 / 3, "synthetic": 1 / 3, "generated": 1 / 3},
            crop_area=(0.7, 1.0),
            crop_ratio=(0.8, 1.25),
            flip_probability=0.5,
            workers=16,  # decoding at 224 px gives some hundred pictures a second a core
            prefetch=4,
        ),
    ),
    batch_size=BATCH,
    steps=EPOCHS * (PAIRS // BATCH + 1),  # 32 * 3,678 = 117,696
    optimizer=OptimizerConfig(),  # its defaults are this recipe
    loss=LossConfig(form="ring"),  # the number of "full", without 4096 x 4096 logits
    positives="pair",
    checkpoint=CheckpointConfig(every=PAIRS // BATCH + 1, keep=3),  # once an epoch
    eval=EvalConfig(),
)
