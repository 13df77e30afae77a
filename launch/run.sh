#!/usr/bin/env bash
# The one entry point of every launcher: launch/run.sh WORKDIR [arguments of train.py]
# Exits with 0 only when the run is finished, so that a scheduler starts one again that was preempted.
set -euo pipefail
workdir=$1
shift
# In a session of its own: SLURM signals a whole process group, Kubernetes this script alone, and
# train.py, which takes a second signal as "at once", must get exactly one.
setsid "${PYTHON:-python}" train.py --workdir "$workdir" "$@" &
train=$!
trap 'kill -TERM "$train"' TERM INT
while true; do # a trapped signal ends `wait` before train.py has saved
  status=0
  wait "$train" || status=$?
  kill -0 "$train" 2>/dev/null || break
done
[[ $status -eq 0 ]] || exit "$status"
# train.py also ends well after a SIGTERM; only a finished run has results.
if [[ ! -f "$workdir/results.json" ]]; then
  echo "run.sh: $workdir is saved, but not finished: start again to go on" >&2
  exit 75 # sysexits.h: a temporary failure, try again
fi
