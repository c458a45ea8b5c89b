#!/usr/bin/env bash
# Renew constraints.txt: install every extra that development uses into a new environment, write down what came.
# torch stays at the pinned version (a range would bring the newest one, and on Linux its CUDA packages).
set -euo pipefail
cd "$(dirname "$0")/.."

torch_pin=$(grep '^torch==' constraints.txt)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

"${PYTHON:-python3}" -m venv "$place"
"$place/bin/pip" install --quiet "$torch_pin"
"$place/bin/pip" install --quiet "$torch_pin" hatchling editables --editable '.[lab,hf,tensorboard,dev,docs]'
{
  sed -n '/^#/p' constraints.txt
  "$place/bin/pip" freeze --exclude-editable | sed 's/+cpu$//'
} >constraints.new
mv constraints.new constraints.txt
