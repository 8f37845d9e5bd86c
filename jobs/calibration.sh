#!/usr/bin/env bash
# Every calibration strategy, on your cluster: jobs/calibration.sh cluster=mine model=ddpm_fashion
set -euo pipefail
jobs="$(cd "$(dirname "$0")" && pwd)"
python -m qdexp -m experiment=calibration hydra/launcher=slurm "hydra.searchpath=['file://$jobs'${CONF:+,'file://$CONF'}]" sweep=calibration "$@"
