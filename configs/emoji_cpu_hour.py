"""Open emoji in about an hour on two CPU cores: patches of 4, a larger model, and more steps.

A patch of 8 x 8 pixels sees an outline only whole; 64 patches of 4 leave it to the token shift and
the WKV to put outlines together, which is what a small convolutional net does.
"""

import dataclasses

import emoji_cpu

from rwkv_jax.data.config import ColourConfig
from rwkv_jax.training.config import CheckpointConfig

CONTEXT = 24  # the tags' median is 13 tokens
WIDTH = 128

_demo = emoji_cpu.config

config = dataclasses.replace(
    _demo,
    model=dataclasses.replace(
        _demo.model,
        # (32 / 4)^2 = 64 patches
        image=dataclasses.replace(
            _demo.model.image, patch_size=4, width=WIDTH, heads=4, depth=4, drop_path=0.2
        ),
        text=dataclasses.replace(
            _demo.model.text, context_length=CONTEXT, width=WIDTH, heads=4, hidden=448
        ),
    ),
    data=dataclasses.replace(
        _demo.data,
        loader=dataclasses.replace(
            _demo.data.loader,
            context_length=CONTEXT,
            # What it was measured with: kinds of text in these shares, lists whole.
            text_probabilities={"tags": 0.5, "label": 0.25, "name": 0.25},
            list_kinds=(),
            # Artists differ in their palettes and shading, hardly in what has which colour.
            colour=ColourConfig(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.03),
        ),
    ),
    # The rate it was measured with; a stronger decay for 57 epochs than for 26.
    optimizer=dataclasses.replace(_demo.optimizer, peak_learning_rate=2e-3, weight_decay=0.5),
    batch_size=128,
    steps=2_600,  # 332,800 pictures, 57 epochs
    checkpoint=CheckpointConfig(every=500),
)
