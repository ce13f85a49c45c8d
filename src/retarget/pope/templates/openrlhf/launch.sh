#!/usr/bin/env bash
# The data and reward of POPE for OpenRLHF 0.11; the trainer's other settings are yours: bash THIS_FILE COMMAND ...
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
exec "$@" \
    --data.prompt_dataset "$here/{train}" --data.input_key prompt --data.label_key label \
    --data.apply_chat_template --reward.remote_url "$here/{reward}"
