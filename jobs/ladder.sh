#!/usr/bin/env bash
# The ladder of methods, on your cluster: jobs/ladder.sh cluster=mine model=ddpm_fashion
set -euo pipefail
cd "$(dirname "$0")/.."
python -m qdexp -m hydra/launcher=slurm hydra.searchpath=[file://jobs] sweep=ladder "$@"
