"""COCO and Flickr30k in Karpathy's splits, whose test parts the papers report."""

from types import MappingProxyType

from rwkv_jax.evaluation.catalog.entry import RetrievalSet

PAGE = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"

_ROWS = (
    RetrievalSet(
        "coco",
        "MSCOCO",
        "dataset_coco.json",
        5_000,
        # 25,010 captions: some pictures have more than five, and the authors' code takes all
        {"clip": 5, "deepglint": None},
        f"{PAGE} and http://images.cocodataset.org/zips/val2014.zip",
    ),
    RetrievalSet(
        "flickr30k",
        "Flickr30k",
        "dataset_flickr30k.json",
        1_000,
        {"clip": 5, "deepglint": None},
        f"{PAGE} and https://shannon.cs.illinois.edu/DenotationGraph/",
    ),
)

RETRIEVAL = MappingProxyType({row.name: row for row in _ROWS})
