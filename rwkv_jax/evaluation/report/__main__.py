"""`python -m rwkv_jax.evaluation.report --workdir RUN` writes RUN/report.html."""

import argparse
import sys
from pathlib import Path

from rwkv_jax.evaluation.report import write_report
from rwkv_jax.files import disk_error


def main() -> None:
    parser = argparse.ArgumentParser(prog="rwkv_jax.evaluation.report", description=__doc__)
    parser.add_argument(
        "--workdir", required=True, type=Path, help="a training run that was evaluated"
    )
    arguments = parser.parse_args()
    try:
        print(write_report(arguments.workdir))
    except (ValueError, FileNotFoundError) as error:
        print(f"report: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"report: {disk_error(error)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
