"""`python -m rwkv_jax.data.convert SOURCE... --out DIR`: what is on disk to what the loader reads.

Sources: webdataset tars, .parquet, .csv/.tsv/.jsonl tables with paths, folders of these or of
pictures, datasets of the catalog (tfds:, records:, folder:). Started again after it was cut off,
the same command goes on and writes the same files. Train on the result as `records:DIR`.

  python -m rwkv_jax.data.convert yfcc/*.tar --out data/yfcc15m
      --texts raw=txt --side synthetic=ofa.parquet generated=dream.jsonl
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from rwkv_jax.data.convert.options import Options
from rwkv_jax.data.convert.run import convert
from rwkv_jax.data.convert.supervise import ConversionError
from rwkv_jax.data.records import DatasetError


def _pairs(values: Sequence[str], option: str) -> dict[str, str]:
    pairs = dict(value.partition("=")[::2] for value in values)
    if not all(name and value for name, value in pairs.items()) or len(pairs) != len(values):
        raise DatasetError(f"{option} {' '.join(values)}: write NAME=VALUE, each name once")
    return pairs


def _parser() -> argparse.ArgumentParser:
    default = Options()
    parser = argparse.ArgumentParser(
        prog="python -m rwkv_jax.data.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add: Any = parser.add_argument
    add("sources", nargs="+", metavar="SOURCE")
    add("--out", required=True, metavar="DIR", help="the dataset's folder")
    add("--texts", nargs="+", default=[], metavar="KIND=FIELD[,FIELD]", help="texts by kind")
    add("--side", nargs="+", default=[], metavar="KIND=FILE", help="tables of texts by key")
    add("--labels", nargs="+", default=[], metavar="LABEL=FIELD", help="class names")
    add("--image", default="", metavar="FIELD", help="of pictures, or of their paths")
    add("--key", default="", metavar="FIELD", help="of keys, which side files join by")
    add("--image-root", default="", metavar="DIR", help="no path leads out of it")
    add("--split", default=default.split)
    add("--data-dir", default=default.data_dir, help="of tfds: datasets")
    add("--max-side", type=int, default=default.max_side, help="re-encodes larger pictures")
    add("--min-side", type=int, default=default.min_side)
    add("--max-pixels", type=int, default=default.max_pixels)
    add("--max-bytes", type=int, default=default.max_bytes)
    add("--duplicates", choices=("keep", "exact", "perceptual"), default=default.duplicates)
    add("--distance", type=int, default=default.distance, help="of perceptual hashes, in bits")
    add("--rows", type=int, default=default.rows, help="of a table in one shard")
    add("--processes", type=int, default=os.cpu_count() or 1)
    add("--ray", default=None, metavar="ADDRESS", help='Ray Data instead: "auto", "local", ...')
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The command line; gives the exit status."""
    given = vars(_parser().parse_args(arguments))
    sources, out = given.pop("sources"), given.pop("out")
    processes, ray = given.pop("processes"), given.pop("ray")
    try:
        texts = _pairs(given.pop("texts"), "--texts")
        options = Options(
            texts={kind: tuple(fields.split(",")) for kind, fields in texts.items()},
            side=_pairs(given.pop("side"), "--side"),
            labels=_pairs(given.pop("labels"), "--labels"),
            **given,
        )
        manifest = convert(sources, out, options, processes=processes, ray=ray)
    except (ConversionError, DatasetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(describe(manifest))
    return 0


def describe(manifest: dict[str, Any]) -> str:
    """What was written and what was not, for people."""
    lines = [
        f"{manifest['records']:,} records of {manifest['samples']:,} samples in"
        f" {len(manifest['shards'])} shards; texts: {', '.join(manifest['text_kinds']) or 'none'}"
    ]
    for outcome, count in manifest["outcomes"].items():
        shown = "; ".join(manifest["examples"].get(outcome, ())[:2])
        lines.append(f"  {count:>10,}  {outcome}" + (f" ({shown})" if shown else ""))
    lines += [f"  {count:>10,}  {note}" for note, count in manifest["notes"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
