#!/usr/bin/env bash
# Every bit-width, on your cluster: jobs/bits.sh cluster=mine model=ddpm_fashion
set -euo pipefail
jobs="$(cd "$(dirname "$0")" && pwd)"
python -m qdexp -m experiment=bits hydra/launcher=slurm "hydra.searchpath=['file://$jobs'${CONF:+,'file://$CONF'}]" sweep=bits "$@"
