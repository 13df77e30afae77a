"""Classes that TFDS does not store but that follow from what it stores of an example.

Each function maps an example to labels: {"class": index} in the order of the set's classes in
clip_prompts.json, or {"class/NAME": 0 or 1} for each class where a picture may have several; -1
is unknown.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from rwkv_jax.evaluation.catalog.classes import plain, prompts_of

# Closest vehicle of KITTI, as VTAB (Zhai et al. 2019) cuts the distance: metres, and whether
# there is one at all. CLIP's four sentences stand in this order.
NEAR, FAR = 8.0, 20.0
VEHICLES = (0, 1, 2)  # Car, Van, Truck


def kitti_distance(example: dict[str, Any]) -> dict[str, int]:
    """Closest vehicle nearer than 8 m, than 20 m, farther, or none."""
    objects = example["objects"]
    depths = [
        float(where[2])
        for kind, where in zip(objects["type"], objects["location"], strict=True)
        if int(kind) in VEHICLES
    ]
    if not depths:
        return {"class": 3}
    return {"class": 0 if min(depths) <= NEAR else 1 if min(depths) <= FAR else 2}


def clevr_counts(example: dict[str, Any]) -> dict[str, int]:
    """How many objects there are, 3 to 10; CLIP's list begins with "10"."""
    names = prompts_of("clevr_counts").titles
    count = str(len(example["objects"]["color"]))
    return {"class": names.index(count) if count in names else -1}


VOC_NAMES = (  # in the order of TFDS
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)


def voc_classes(example: dict[str, Any]) -> dict[str, int]:
    """Which classes are there; one with difficult objects alone counts neither way, as in VOC."""
    objects = example["objects"]
    easy: dict[str, bool] = {}
    for label, difficult in zip(objects["label"], objects["is_difficult"], strict=True):
        name = VOC_NAMES[int(label)]
        easy[name] = easy.get(name, False) or not difficult
    by_name = {plain(name): found for name, found in easy.items()}
    return {
        f"class/{title}": {None: 0, True: 1, False: -1}[by_name.get(plain(title))]
        for title in prompts_of("voc2007").titles
    }


DERIVED: Mapping[str, Callable[[dict[str, Any]], dict[str, int]]] = MappingProxyType(
    {
        "kitti_distance": kitti_distance,
        "clevr_counts": clevr_counts,
        "voc_classes": voc_classes,
    }
)
