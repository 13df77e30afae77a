"""The contrastive loss over the global batch: softmax or sigmoid, in full or round a ring."""

from rwkv_jax.training.losses.build import check_loss_fits, make_loss
from rwkv_jax.training.losses.full import PairLosses, full_sigmoid, full_softmax
from rwkv_jax.training.losses.labels import pair_labels
from rwkv_jax.training.losses.ring_sigmoid import ring_sigmoid
from rwkv_jax.training.losses.ring_softmax import ring_softmax

__all__ = [
    "PairLosses",
    "check_loss_fits",
    "full_sigmoid",
    "full_softmax",
    "make_loss",
    "pair_labels",
    "ring_sigmoid",
    "ring_softmax",
]
