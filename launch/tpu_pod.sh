#!/usr/bin/env bash
# A Cloud TPU pod, from a queued resource to the log of all workers:
#   launch/tpu_pod.sh NAME ZONE TYPE VERSION NFS WORKDIR CONFIG [overrides]
#   launch/tpu_pod.sh clip us-west4-a v5litepod-256 v2-alpha-tpuv5-lite 10.0.0.2:/runs b32 \
#     configs/rwkv_clip_b32_yfcc15m.py --data.data-dir /mnt/runs/data
# NFS is a share that all workers mount as /mnt/runs: the run lies in /mnt/runs/WORKDIR. A preempted
# pod is deleted and asked for again, and the run goes on from its newest whole checkpoint.
set -uo pipefail
name=$1 zone=$2 type=$3 version=$4 nfs=$5 workdir=/mnt/runs/$6 config=$7
shift 7
tpu() { gcloud compute tpus "$@" --zone "$zone"; }
on_all() { tpu tpu-vm ssh "$name" --worker=all --command "$1"; }

archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
git archive --format=tar.gz -o "$archive" HEAD || exit 1
arguments=$(printf '%q ' "$workdir" --config "$config" "$@")

until false; do
  tpu queued-resources create "$name" --node-id "$name" --accelerator-type "$type" \
    --runtime-version "$version" --spot || exit 1
  until [[ $(tpu queued-resources describe "$name" --format='value(state.state)') == ACTIVE ]]; do
    sleep 30
  done
  tpu tpu-vm scp "$archive" "$name:rwkv.tar.gz" --worker=all &&
    on_all "sudo apt-get install -qy nfs-common python3.11-venv && sudo mkdir -p /mnt/runs &&
      { mountpoint -q /mnt/runs || sudo mount -t nfs $nfs /mnt/runs; } &&
      mkdir -p rwkv && tar xzf rwkv.tar.gz -C rwkv && cd rwkv &&
      python3.11 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e '.[tpu]'" &&
    on_all "cd rwkv && PYTHON=.venv/bin/python launch/run.sh $arguments"
  status=$?
  tpu queued-resources delete "$name" --force --quiet
  [[ $status -eq 0 ]] && exit 0
  echo "tpu_pod.sh: ended with status $status; asking for another pod" >&2
  sleep 60
done
