"""Open emoji on two CPU cores with patches of 4, a larger model and more steps.

33 minutes on newer cores (README); on older ones, by the demo's speed there, an hour and a half.

A patch of 8 x 8 pixels sees an outline only whole; 64 patches of 4 leave it to the token shift and
the WKV to put outlines together, which is what a small convolutional net does.
"""

from common import OPEN_EMOJI_EVAL

from rwkv_jax.config import DataConfig, RunConfig
from rwkv_jax.data.config import ColourConfig, LoaderConfig
from rwkv_jax.models import ClipConfig, ImageConfig, TextConfig
from rwkv_jax.training.config import CheckpointConfig, OptimizerConfig

IMAGE_SIZE = 32
CONTEXT = 24  # the tags' median is 13 tokens
WIDTH = 128

config = RunConfig(
    model=ClipConfig(
        # (32 / 4)^2 = 64 patches
        image=ImageConfig(
            image_size=IMAGE_SIZE,
            patch_size=4,
            width=WIDTH,
            heads=4,
            depth=4,
            hidden_rate=4,
            drop_path=0.2,
        ),
        text=TextConfig(context_length=CONTEXT, width=WIDTH, heads=4, depth=1, hidden=448),
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
            # Artists differ in their palettes and shading, hardly in what has which colour.
            colour=ColourConfig(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.03),
        ),
    ),
    batch_size=128,
    steps=1_800,  # 230,400 pictures, 40 epochs
    # A stronger decay for 40 epochs than the demo's for 26.
    optimizer=OptimizerConfig(name="muon", peak_learning_rate=2.5e-3, weight_decay=0.4),
    positives="concept",  # five artists draw the same concept: their texts are right for each other
    checkpoint=CheckpointConfig(every=500),
    eval=OPEN_EMOJI_EVAL,
)
