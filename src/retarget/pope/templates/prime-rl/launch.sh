#!/usr/bin/env bash
# Run a command on POPE's tasks for verifiers 0.4: bash THIS_FILE COMMAND ..., such as `vf-eval -m MODEL -n 3`. A trainer
# that uses verifiers needs the same two settings of its environments, taskset id and path, and this folder on PYTHONPATH.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
exec "$@" --env.taskset.id {module} --env.taskset.path "$here/{train}"
