"""The demo: open emoji on two CPU cores in minutes."""

from common import OPEN_EMOJI_EVAL

from rwkv_jax.config import DataConfig, RunConfig
from rwkv_jax.data.config import ColourConfig, LoaderConfig
from rwkv_jax.models import ClipConfig, ImageConfig, TextConfig
from rwkv_jax.training.config import CheckpointConfig, OptimizerConfig

IMAGE_SIZE = 32
CONTEXT = 20  # 95% of the labels and names have at most 9 tokens; the tags' median is 13
# Two blocks of 96: in the time of fewer steps of four blocks of 128 it learns more (docs/LOG.md).
WIDTH = 96

config = RunConfig(
    model=ClipConfig(
        # (32 / 8)^2 = 16 patches
        image=ImageConfig(
            image_size=IMAGE_SIZE,
            patch_size=8,
            width=WIDTH,
            heads=3,
            depth=2,
            hidden_rate=4,
            drop_path=0.15,
        ),
        text=TextConfig(context_length=CONTEXT, width=WIDTH, heads=3, depth=1, hidden=336),
    ),
    data=DataConfig(
        dataset="open_emoji",
        split="train",
        loader=LoaderConfig(
            image_size=IMAGE_SIZE,
            context_length=CONTEXT,
            # Tags share their words with other concepts, which is what new concepts are found by.
            text_probabilities={"tags": 0.56, "label": 0.22, "name": 0.22},
            list_kinds=("tags",),
            crop_area=(0.5, 1.0),  # the recipe's 0.7 is for millions of pictures
            # Half of the hour's changes (`emoji_cpu_hour.py`), for two thirds of its epochs.
            colour=ColourConfig(brightness=0.15, contrast=0.15, saturation=0.15, hue=0.02),
        ),
    ),
    batch_size=128,
    steps=1_200,  # 153,600 pictures, 26 epochs
    # R@10 of a new artist is 3 to 8 points above AdamW's (docs/LOG.md). The recipe's decay of 0.2
    # is for 118,000 steps.
    optimizer=OptimizerConfig(name="muon", peak_learning_rate=2.5e-3, weight_decay=0.35),
    positives="concept",  # five artists draw the same concept: their texts are right for each other
    checkpoint=CheckpointConfig(every=600),
    eval=OPEN_EMOJI_EVAL,
)
