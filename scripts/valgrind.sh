#!/usr/bin/env bash
# Every kernel once under valgrind's memory checker. It emulates a processor without AVX-512, so the scalar and the AVX2
# kernels are what it sees; the sanitizers (scripts/sanitize.sh) see all. Python's and torch's own reports are not ours:
# only those with a frame of the kernels count.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v valgrind >/dev/null || { echo "No valgrind: install it (Debian: apt-get install valgrind)"; exit 1; }
log=$(mktemp)
trap 'rm -f "$log"' EXIT
OMP_NUM_THREADS=1 MOEGATE_STRICT=1 PYTHONMALLOC=malloc \
  valgrind --log-file="$log" --num-callers=30 --error-limit=no "${PYTHON:-.venv/bin/python}" scripts/exercise_kernels.py

# A report is a paragraph; lines begin with ==PID==.
if sed 's/^==[0-9]*== \?//' "$log" | awk 'BEGIN { RS = ""; ORS = "\n\n" } /_kernels\.so|moegate::/ { print; found = 1 } END { exit found }'; then
  echo "valgrind: no report has a frame of the kernels"
else
  echo "valgrind: see the reports above"
  exit 1
fi
