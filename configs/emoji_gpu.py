"""Open emoji on one GPU: the demo's data, 43 million parameters instead of 5, whole tags."""

from common import OPEN_EMOJI_EVAL

from rwkv_jax.config import DataConfig, RunConfig
from rwkv_jax.data.config import LoaderConfig
from rwkv_jax.models import ClipConfig, ImageConfig, TextConfig
from rwkv_jax.training.config import CheckpointConfig, OptimizerConfig

IMAGE_SIZE = 64  # drawn at 72 px; crops of 0.7 to 1 of the area are 60 to 72 px wide
CONTEXT = 32  # 95% of the tags have at most 30 tokens
WIDTH = 384
PICTURES = 5_798  # split `train`
BATCH = 1024
EPOCHS = 400

config = RunConfig(
    model=ClipConfig(
        # (64 / 8)^2 = 64 patches
        image=ImageConfig(
            image_size=IMAGE_SIZE,
            patch_size=8,
            width=WIDTH,
            heads=6,
            depth=8,
            hidden_rate=4,
            drop_path=0.2,  # 400 epochs of few pictures: between the recipe's 0.3 and none
        ),
        text=TextConfig(
            context_length=CONTEXT,
            width=WIDTH,
            heads=6,
            depth=3,
            hidden=1344,  # 3.5 * 384, a multiple of 32
        ),
    ),
    data=DataConfig(
        dataset="open_emoji",
        split="train",
        loader=LoaderConfig(
            image_size=IMAGE_SIZE,
            context_length=CONTEXT,
            workers=4,  # about 4,000 pictures a second a core
            prefetch=4,
        ),
    ),
    batch_size=BATCH,
    steps=EPOCHS * PICTURES // BATCH,  # 2,264
    optimizer=OptimizerConfig(),
    positives="concept",
    checkpoint=CheckpointConfig(every=500),
    eval=OPEN_EMOJI_EVAL,
    eval_every=500,
)
