#!/usr/bin/env bash
# POPE's tasks for verifiers 0.4: bash THIS_FILE COMMAND ..., such as `vf-eval -m MODEL -n 3`. A trainer on verifiers takes
# the same two settings for its environments, taskset id and path, and this folder on its PYTHONPATH.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
exec "$@" --env.taskset.id {module} --env.taskset.path "$here/{train}"
