"""Your own pictures: copy this file, set FOLDER, and train. See "Train on your own pictures"."""

from rwkv_jax.config import DataConfig, RunConfig
from rwkv_jax.data.config import LoaderConfig
from rwkv_jax.evaluation.config import EvalConfig, RetrievalConfig
from rwkv_jax.models import ClipConfig, ImageConfig, TextConfig
from rwkv_jax.training.config import OptimizerConfig

FOLDER = "folder:my_pictures"  # pictures, and one .jsonl, .csv or .tsv of their texts
IMAGE_SIZE = 64
CONTEXT = 32
WIDTH = 128

config = RunConfig(
    model=ClipConfig(
        image=ImageConfig(
            image_size=IMAGE_SIZE, patch_size=8, width=WIDTH, heads=4, depth=4, hidden_rate=4
        ),
        text=TextConfig(context_length=CONTEXT, width=WIDTH, heads=4, depth=1, hidden=448),
    ),
    data=DataConfig(
        dataset=FOLDER,
        split="train",  # all rows, unless the table has a column `split`
        loader=LoaderConfig(image_size=IMAGE_SIZE, context_length=CONTEXT),
    ),
    batch_size=64,
    steps=1000,
    optimizer=OptimizerConfig(peak_learning_rate=2e-3),
    # How well pictures seen in training are told apart; name a held-out split if there is one.
    eval=EvalConfig(retrieval=(RetrievalConfig(FOLDER, "train"),)),
)
