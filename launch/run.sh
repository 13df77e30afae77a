#!/usr/bin/env bash
# The one entry point of every launcher: launch/run.sh WORKDIR [arguments of train.py]
# Exits with 0 only when the run is finished, so that a scheduler starts one again that was preempted.
set -euo pipefail
workdir=$1
shift
"${PYTHON:-python}" train.py --workdir "$workdir" "$@"
# train.py also ends well after a SIGTERM; only a finished run has results.
if [[ ! -f "$workdir/results.json" ]]; then
  echo "run.sh: $workdir is saved, but not finished: start again to go on" >&2
  exit 75 # sysexits.h: a temporary failure, try again
fi
