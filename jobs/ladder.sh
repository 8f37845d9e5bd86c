#!/usr/bin/env bash
# The ablation of methods, on your cluster: jobs/ladder.sh cluster=mine model=ddpm_fashion
# With configs of your own: CONF=/path/to/conf jobs/ladder.sh ...
set -euo pipefail
jobs="$(cd "$(dirname "$0")" && pwd)"
python -m qdexp -m hydra/launcher=slurm "hydra.searchpath=['file://$jobs'${CONF:+,'file://$CONF'}]" sweep=ladder "$@"
