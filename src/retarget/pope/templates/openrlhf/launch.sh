#!/usr/bin/env bash
# Run OpenRLHF 0.11 with POPE's data and reward: bash THIS_FILE COMMAND ..., with all other settings in COMMAND
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
exec "$@" \
    --data.prompt_dataset "$here/{train}" --data.input_key prompt --data.label_key label \
    {chat}--reward.remote_url "$here/{reward}"
