"""What the authors' evaluation does beside measuring, so that each thing's effect can be seen.

Read off github.com/deepglint/RWKV-CLIP (zero_shot.py, text_image_retrieval.py, dataloaders/ and
shell/, 2024). Nothing of this is on unless a config asks for it; a figure that it touches says so
in its name, so that one table can show both.

A fourth is no quirk of the evaluation but of the model: the mean over all 77 positions of a text,
padding included. The published weights are trained with it, so it stays on unless
`EvalConfig.pool_padding` turns it off.
"""

import numpy as np
from jaxtyping import Float32, Int

# Before every caption of COCO, and of Flickr30k (`RetrievalConfig.caption_prefix`).
CAPTION_PREFIX = "a photo of "
PROCESSES, BATCH = 8, 120  # of shell/test_zero_shot_classificaiton.sh


def integer_logits(
    similarities: Float32[np.ndarray, "n classes"],
) -> Float32[np.ndarray, "n classes"]:
    """100 x cosine without its digits after the point: 27.9 and 27.1 tie, -0.4 is 0.

    The authors' code writes its logits into an array of integers, which cuts them off.
    """
    return np.trunc(100 * similarities)


def first_of_equals_rank(
    scores: Float32[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]
) -> Int[np.ndarray, " n"]:
    """The place, from 1, of every row's own class; of equal classes the first stands before.

    So torch.topk(k=1) decides on a CPU from 64 classes on; with fewer its order among equals is
    not defined. (Elsewhere in this project ties count against the model.)

    Example:
      >>> first_of_equals_rank(np.array([[3.0, 3, 1], [3, 3, 1]]), np.array([0, 1]))
      array([1, 2])
    """
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    earlier = np.arange(scores.shape[1]) < labels[:, None]
    return 1 + ((scores > own) | ((scores == own) & earlier)).sum(axis=1)


def phantom_rows(pictures: int, processes: int = PROCESSES, batch: int = BATCH) -> int:
    """How many rows the authors' code judges on ImageNet beyond the pictures there are.

    Each process makes room for whole batches, and the rows that no picture fills keep the label 0
    and logits of 0. Of equal classes the first is the answer, 0: every such row counts as right.

    Example:
      >>> phantom_rows(50_000)  # 8 x (53 x 120 - 6250): 50% become 50.86%
      880
    """
    ends = [pictures * (i + 1) // processes for i in range(processes)]
    shards = np.diff([0, *ends])
    return int((-(-shards // batch) * batch - shards).sum())
