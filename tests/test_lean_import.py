"""`import moegate` costs little beyond torch and loads nothing heavy; a third of the time registers the operators."""

import os
import subprocess
import sys

import pytest

BUDGET_MS = 100.0
MAX_RUNS = 5
HEAVY = ("triton", "transformers", "matplotlib", "typer", "rich", "mlxtend", "sklearn", "pandas")

# A collection of torch's many objects, which may fall anywhere, would cost as much as the whole import.
TIMED = """
import gc
import time
import torch
gc.disable()
start = time.process_time()
import moegate
print((time.process_time() - start) * 1000)
"""

LOADED = """
import sys
import torch
before = set(sys.modules)
import moegate
print(" ".join(sorted({name.split(".")[0] for name in set(sys.modules) - before})))
"""


def python(code: str) -> str:
    """What a fresh interpreter prints, without the coverage that pytest-cov would start in it."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("COV_", "COVERAGE_"))}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=env)
    return done.stdout.strip()


def test_import_is_cheap_beyond_torch() -> None:
    # Processor time, and the best of a few runs: other work on the machine can only make a run slower.
    times: list[float] = []
    while len(times) < MAX_RUNS and min(times, default=BUDGET_MS + 1) > BUDGET_MS:
        times.append(float(python(TIMED)))
    assert min(times) <= BUDGET_MS, f"import moegate took {times} ms beyond torch, at best {min(times):.1f}"


@pytest.fixture(scope="module")
def newly_loaded() -> set[str]:
    return set(python(LOADED).split())


def test_the_probe_sees_what_is_loaded(newly_loaded: set[str]) -> None:
    assert "moegate" in newly_loaded


@pytest.mark.parametrize("name", HEAVY)
def test_import_does_not_load(name: str, newly_loaded: set[str]) -> None:
    assert name not in newly_loaded


def test_import_does_not_load_the_leaves() -> None:
    leaves = ("bench", "cli", "lab", "report", "hf", "trace", "ascend")
    code = "import sys, moegate; print(' '.join(name for name in sys.modules if name.startswith('moegate.')))"
    parts = {name.split(".")[1] for name in python(code).split()}
    assert parts.isdisjoint(leaves)
