"""Model FLOPs: what the mathematics of a model asks for, whatever a program does to get it.

Two for each multiplication that is added up in a matrix product. Counted are the products with
parameters, the WKV in its recurrent form, and the matrix of scores; norms, gates, token shifts and
activation functions are not (under 3% by XLA's own count). Recomputed blocks count once, so that a
run's MFU (Chowdhery et al. 2022, arXiv 2204.02311, appendix B) does not rise by recomputing.
"""

import dataclasses

from rwkv_jax.models.config import ClipConfig
from rwkv_jax.models.image_encoder import image_block_spec
from rwkv_jax.models.spec import BlockSpec
from rwkv_jax.models.text_encoder import text_block_spec

BACKWARD = 2  # a product's gradient is two products: one for each operand


@dataclasses.dataclass(frozen=True)
class ModelFlops:
    """FLOPs of a training step over a whole batch, forward and backward.

    Attributes:
        image: of the image tower.
        text: of the text tower.
        loss: of the scores of all pairs.
    """

    image: float
    text: float
    loss: float

    @property
    def total(self) -> float:
        return self.image + self.text + self.loss


def train_flops(config: ClipConfig, batch: int, *, frozen: str | None = None) -> ModelFlops:
    """FLOPs of one update over `batch` pairs.

    Args:
        frozen: a tower, "image" or "text", that is not trained: it has no backward pass.

    Example: B/32, batch 4096: 1.69e14, of which the image tower takes 61% and the loss 0.04%.
    """
    image, text = config.image, config.text
    passes = {tower: 1 if tower == frozen else 1 + BACKWARD for tower in ("image", "text")}
    image_blocks = image_tokens(config) * image.depth * block_flops(image_block_spec(image))
    text_blocks = text.context_length * text.depth * block_flops(text_block_spec(text))
    # The pixels need no gradient, so the patch embedding's backward is one product.
    patch_passes = 1 if frozen == "image" else 2
    return ModelFlops(
        image=float(batch * (passes["image"] * image_blocks + patch_passes * patch_flops(config))),
        text=float(batch * passes["text"] * text_blocks),
        loss=float((1 + BACKWARD) * 2 * batch**2 * image.width),
    )


def image_tokens(config: ClipConfig) -> int:
    """Tokens of an image at the configured size, the cls token included."""
    return config.image.grid**2 + config.image.with_cls_token


def patch_flops(config: ClipConfig) -> int:
    """Of one image's patch embedding, forward."""
    image = config.image
    return 2 * image.grid**2 * (3 * image.patch_size**2) * image.width


def block_flops(spec: BlockSpec) -> int:
    """Of one token in one block, forward."""
    D, N = spec.width, spec.width // spec.heads
    products = (
        5 * D * D  # receptance, key, value, gate, output
        + 2 * D * (5 * spec.mix_rank)  # the five offsets: down to five ranks, and up from each
        + 2 * D * spec.decay_rank
        + D * (2 * spec.hidden + D)  # channel mix: key, value, receptance
    )
    # The WKV, a head: S += k v^T and r S in both directions, N^2 multiplications each.
    wkv = spec.heads * 2 * (2 * N * N)
    return 2 * (products + wkv)
