#!/usr/bin/env bash
# How bimodal shortcuts may be, on your cluster: jobs/shortcut_modes.sh cluster=mine
set -euo pipefail
jobs="$(cd "$(dirname "$0")" && pwd)"
python -m qdexp -m experiment=shortcut_modes hydra/launcher=slurm "hydra.searchpath=['file://$jobs'${CONF:+,'file://$CONF'}]" sweep=shortcut_modes "$@"
