"""Pictures a second and core, from JPEGs to training batches, beside PyTorch's DataLoader.

The same files for all: 512 x 512 JPEGs cut out of two photographs (scikit-learn's samples), written
as webdataset tars by webdataset itself, and converted from those by `rwkv_jax.data.convert`. All
work in one process, so that its CPU time is one core's, whatever else the machine does. The rivals
take turns with ours, round by round.

Needs the extra `bench`: python -m rwkv_jax.data.bench [--out FILE.md]
"""

import argparse
import importlib.metadata
import io
import itertools
import math
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from rwkv_jax.data import train_crop
from rwkv_jax.data.catalog import open_dataset
from rwkv_jax.data.config import LoaderConfig
from rwkv_jax.data.convert.options import Options
from rwkv_jax.data.convert.run import convert
from rwkv_jax.data.loader import make_train_loader
from rwkv_jax.data.pairs import MakePair, Placed
from rwkv_jax.data.preprocess import draw_crop
from rwkv_jax.data.tokenizer import Tokenizer
from rwkv_jax.files import write_atomically

SIDE = 512
SIZE = 224
BATCH = 64
QUALITY = 90  # 68 kB a picture
# The paper's; its JPEGs lose the least by scaled decoding, as most of the picture is used.
CONFIG = LoaderConfig(image_size=SIZE, crop_area=(0.7, 1.0), crop_ratio=(0.8, 1.25))


def make_jpegs(count: int) -> list[bytes]:
    """Windows of two photographs of 427 x 640 pixels, at SIDE x SIDE."""
    from sklearn.datasets import load_sample_images

    photos = load_sample_images().images
    rng = np.random.default_rng(0)
    files = []
    for i in range(count):
        photo = photos[i % len(photos)]
        side = int(rng.integers(380, 428))
        top, left = (int(rng.integers(n - side + 1)) for n in photo.shape[:2])
        window = photo[top : top + side, left : left + side]
        file = io.BytesIO()
        picture = cv2.resize(window, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        Image.fromarray(picture).save(file, "JPEG", quality=QUALITY)
        files.append(file.getvalue())
    return files


def write_tars(files: list[bytes], folder: Path) -> list[str]:
    import webdataset

    tars = []
    for start in range(0, len(files), 256):
        tars.append(str(folder / f"{start // 256:05d}.tar"))
        with webdataset.TarWriter(tars[-1]) as writer:
            for i, data in enumerate(files[start : start + 256], start=start):
                writer.write({"__key__": f"{i:06d}", "jpg": data, "txt": f"photograph {i}"})
    return tars


def ours(records: Path) -> Iterator[int]:
    source = open_dataset(f"records:{records}", "train", "")
    loader = make_train_loader(source, CONFIG, Tokenizer(77), batch_size=BATCH, seed=0)
    with loader:
        for batch in loader:
            yield len(batch["image"])


def _pil_crop(data: bytes) -> np.ndarray:
    """torchvision's RandomResizedCrop and flip as open_clip has them: PIL, bicubic."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    top, left, h, w = draw_crop(
        image.height, image.width, np.random.default_rng(), CONFIG.crop_area, CONFIG.crop_ratio
    )
    part = image.crop((left, top, left + w, top + h))
    part = part.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    if random.random() < CONFIG.flip_probability:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(part)


def _opencv_crop(data: bytes) -> np.ndarray:
    """The same by OpenCV, averaging."""
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    image = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    height, width = image.shape[:2]
    rng = np.random.default_rng()
    top, left, h, w = draw_crop(height, width, rng, CONFIG.crop_area, CONFIG.crop_ratio)
    part = cv2.resize(
        image[top : top + h, left : left + w], (SIZE, SIZE), interpolation=cv2.INTER_AREA
    )
    return cv2.flip(part, 1) if random.random() < CONFIG.flip_probability else part


def webdataset_loader(tars: list[str], crop: Callable[[bytes], np.ndarray]) -> Iterator[int]:
    """Endless batches of uint8 pictures and undecoded texts, nothing tokenised or normalised."""
    import torch
    import webdataset

    def sample(pair: tuple[bytes, bytes]) -> tuple[Any, str]:
        return torch.from_numpy(crop(pair[0])), pair[1].decode()

    data = webdataset.WebDataset(tars, shardshuffle=False).shuffle(256).to_tuple("jpg", "txt")
    loader = torch.utils.data.DataLoader(data.map(sample).repeat(), BATCH, num_workers=0)
    for images, _ in loader:
        yield len(images)


def pictures_a_second(batches: Iterator[int], count: int) -> tuple[float, float]:
    """Of CPU time of this process, all threads; and of wall time."""
    next(batches)
    cpu, wall, done = time.process_time(), time.perf_counter(), 0
    while done < count:
        done += next(batches)
    return done / (time.process_time() - cpu), done / (time.perf_counter() - wall)


def where_time_goes(records: Path, count: int) -> dict[str, float]:
    """Milliseconds of CPU time a picture, stage by stage."""
    source = open_dataset(f"records:{records}", "train", "")
    found = [source[i] for i in range(min(count, len(source)))]
    tokenizer = Tokenizer(77)
    tokenizer(["warm"])
    rng = np.random.default_rng(0)
    crops, parts, scales = [], [], []
    for record in found:
        whole = train_crop._scalable(record["image"])
        assert whole is not None
        _, _, h, w = draw_crop(*whole, rng, CONFIG.crop_area, CONFIG.crop_ratio)
        eighths = min(8, math.ceil(8 * SIZE / min(h, w)))
        scaled = train_crop._decode_scaled(record["image"], whole, eighths)
        assert scaled is not None
        crops.append((record["image"], whole, eighths))
        scales.append(eighths)
        h, w = round(h * eighths / 8), round(w * eighths / 8)
        parts.append(scaled[:h, :w])
    make = MakePair(source, CONFIG, tokenizer, global_batch_size=BATCH)
    stages: dict[str, tuple[Callable[[Any], Any], list[Any]]] = {
        "read and parse the record": (lambda i: source[i], list(range(len(found)))),
        "JPEG header, EXIF": (train_crop._scalable, [r["image"] for r in found]),
        "draw the crop": (
            lambda _: draw_crop(SIDE, SIDE, rng, CONFIG.crop_area, CONFIG.crop_ratio),
            found,
        ),
        "decode, scaled": (lambda c: train_crop._decode_scaled(*c), crops),
        "resize": (lambda p: train_crop._resize(p, SIZE), parts),
        "flip (half of them)": (lambda p: cv2.flip(p, 1), [p[:SIZE, :SIZE] for p in parts[::2]]),
        "tokenise": (lambda r: tokenizer(r["texts"]["txt"]), found),
        "all of a pair": (lambda i: make(Placed(i, i), rng), list(range(len(found)))),
    }
    times = {}
    for name, (stage, arguments) in stages.items():
        rounds = []
        for _ in range(5):
            began = time.process_time()
            for argument in arguments:
                stage(argument)
            rounds.append((time.process_time() - began) / len(found) * 1e3)
        times[name] = min(rounds)
    for eighths in sorted(set(scales)):
        times[f"share decoded at {eighths}/8"] = scales.count(eighths) / len(scales)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pictures", type=int, default=1024, help="a round")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="bench-data-") as temporary:
        folder = Path(temporary)
        files = make_jpegs(512)
        tars = write_tars(files, folder)
        # Many windows look alike; all are wanted.
        convert(tars, folder / "records", Options(duplicates="keep"))
        roads = {
            "this loader": ours(folder / "records"),
            "DataLoader + webdataset, PIL": webdataset_loader(tars, _pil_crop),
            "DataLoader + webdataset, OpenCV": webdataset_loader(tars, _opencv_crop),
        }
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in roads}
        with tqdm(total=given.rounds * len(roads), desc="rounds") as bar:
            for _, (name, road) in itertools.product(range(given.rounds), roads.items()):
                rates[name].append(pictures_a_second(road, given.pictures))
                bar.update()
        stages = where_time_goes(folder / "records", 256)
    report = _report(files, rates, stages)
    print(report)
    if given.out:
        write_atomically(given.out, report)


def _report(
    files: list[bytes], rates: dict[str, list[tuple[float, float]]], stages: dict[str, float]
) -> str:
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in (
            *("grain", "simplejpeg", "opencv-python-headless", "pillow", "torch", "webdataset"),
        )
    )
    median = {
        name: tuple(statistics.median(values) for values in zip(*found, strict=True))
        for name, found in rates.items()
    }
    mine = median["this loader"][0]
    lines = [
        "# Data benchmark",
        "",
        f"From JPEGs of {SIDE} x {SIDE} pixels ({np.mean([len(f) for f in files]) / 1e3:.0f} kB) to"
        f" batches of {BATCH} uint8 pictures of {SIZE} x {SIZE}: crop of area"
        f" {CONFIG.crop_area[0]:g} to {CONFIG.crop_area[1]:g}, flip. One process each, all its"
        " threads counted; medians of"
        f" {len(rates['this loader'])} rounds in which the roads take turns. {_machine()}."
        f" {versions}. `make bench-data` writes this file.",
        "",
        "| | pictures a second of CPU time | ours over it | slowest and quickest round"
        " | a second of wall time |",
        "|---|---|---|---|---|",
    ]
    for name, (cpu, wall) in median.items():
        low, high = min(r[0] for r in rates[name]), max(r[0] for r in rates[name])
        lines.append(
            f"| {name} | {cpu:,.0f} | {mine / cpu:.2f}x | {low:,.0f} to {high:,.0f} | {wall:,.0f} |"
        )
    lines += [
        "",
        "Ours also tokenises and counts the kinds of text; the rivals hand the text over as it is."
        " torchvision goes with another torch, so the rivals' crop is the same few lines on PIL"
        " (bicubic, as open_clip asks torchvision for) or OpenCV (averaging).",
        "",
        "## Where the time goes",
        "",
        "| milliseconds of CPU time a picture | |",
        "|---|---|",
    ]
    lines += [f"| {n} | {t:.3f} |" for n, t in stages.items() if not n.startswith("share")]
    rest = 1e3 / mine - stages["all of a pair"]
    lines.append(f"| the rest of a batch: stacking, handing over, threads | {rest:.3f} |")
    scales = ", ".join(
        f"{share:.0%} at {name.removeprefix('share decoded at ')}"
        for name, share in stages.items()
        if name.startswith("share")
    )
    lines += [
        "",
        f"Decoded: {scales} of the size. Of decoding, what is left at half size is the entropy"
        " code, which no scale saves.",
        "",
    ]
    return "\n".join(lines)


def _machine() -> str:
    cores = os.cpu_count()
    load = os.getloadavg()[0]
    name = platform.processor() or platform.machine()
    cpus = Path("/proc/cpuinfo")
    if cpus.exists():
        models = [n for n in cpus.read_text().splitlines() if n.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    return f"{name}, {cores} cores of a shared server, load average {load:.1f}"


if __name__ == "__main__":
    main()
