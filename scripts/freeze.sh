#!/usr/bin/env bash
# Renew constraints.txt: install every extra that development uses into a new environment, write down what came.
# Run it with the oldest Python that development supports (PYTHON=/usr/bin/python3 on Debian 12): newer versions
# of a tool may need a newer Python. torch stays at its pinned version, because a range would bring the newest
# one, on Linux with its CUDA packages.
set -euo pipefail
cd "$(dirname "$0")/.."

torch_pin=$(grep '^torch==' constraints.txt)
header=$(grep '^#' constraints.txt)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

"${PYTHON:-python3}" -m venv "$place"
"$place/bin/pip" install --quiet "$torch_pin" numpy scikit-build-core cmake ninja
"$place/bin/pip" install --quiet --no-build-isolation --editable '.[gpu,lab,hf,gguf,lightning,tensorboard,dev,docs]'
pins=$("$place/bin/pip" freeze --exclude-editable | sed 's/+cpu$//')
printf '%s\n' "$header" "$pins" >constraints.txt
