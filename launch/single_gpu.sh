#!/usr/bin/env bash
# One GPU: launch/single_gpu.sh WORKDIR CONFIG [overrides]; again and again until it is finished.
set -uo pipefail
workdir=$1 config=$2
shift 2
for attempt in 1 2 3 4 5; do
  launch/run.sh "$workdir" --config "$config" "$@" && exit 0
  status=$?
  [[ $status -eq 2 ]] && exit 2 # a wrong argument stays wrong
  echo "attempt $attempt ended with status $status" >&2
  sleep 10
done
exit 1
