"""The process that converts: reads tasks from standard input, says how far it is, line by line.

A decoder that crashes takes this process down, not the conversion; see `supervise`.
"""

import json
import os
import sys
from pathlib import Path

from rwkv_jax.data.convert.options import Options, Unit
from rwkv_jax.data.convert.unit import convert_unit


def main() -> None:
    """Serves tasks until standard input ends."""
    import cv2

    cv2.setNumThreads(1)
    # Libraries print to standard output; only this process's own lines may reach the parent.
    lines = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)

    def tell(phase: str, ordinal: int) -> None:
        lines.write(f"{phase} {ordinal}\n")

    lines.write("ready\n")
    for line in sys.stdin:
        task = json.loads(line)
        try:
            report = convert_unit(
                Unit(**task["unit"]),
                Options.from_json(task["options"]),
                Path(task["work"]),
                frozenset(task["poison"]),
                task["stop"],
                tell,
            )
        except BrokenPipeError:
            return  # the parent is gone
        except Exception as error:
            lines.write(f"failed {json.dumps(f'{type(error).__name__}: {error}')}\n")
        else:
            lines.write(f"done {json.dumps(report)}\n")


if __name__ == "__main__":
    main()
