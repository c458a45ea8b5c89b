#!/usr/bin/env bash
# The tests of the operators on kernels built with the address and undefined-behaviour sanitizers, for every
# instruction set that this processor has. Leaks are not looked for: torch keeps memory until the process ends.
set -euo pipefail
cd "$(dirname "$0")/.."

python=$(realpath -s "${PYTHON:-.venv/bin/python}")
build=build/sanitize
cmake -S . -B "$build" -G Ninja -DPython_EXECUTABLE="$python" -DMOEGATE_REQUIRE_KERNELS=ON -DMOEGATE_SANITIZE=ON \
  -DCMAKE_BUILD_TYPE=RelWithDebInfo >/dev/null
cmake --build "$build"

# -s: a sanitizer's report must reach the terminal. The suite's poisoned memory and the compilers' tests stay out:
# a compiler starts others, which must not run under the sanitizer. So do those that measure the peak of the memory: the
# sanitizer keeps what is freed.
LD_PRELOAD="$(c++ -print-file-name=libasan.so):$(c++ -print-file-name=libubsan.so):$(c++ -print-file-name=libstdc++.so.6)" \
  ASAN_OPTIONS=detect_leaks=0:halt_on_error=1:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
  OMP_NUM_THREADS=2 MOEGATE_STRICT=1 MOEGATE_LIBRARY="$build/_kernels.so" \
  "$python" -m pytest -q -s -p no:cacheprovider --timeout=600 tests/ops tests/dispatch \
  -k "not compile and not export and not inductor and not mebibyte" "$@"
