"""Instructions a token of the gate's variants: by ``perf stat``, else by valgrind's callgrind, else not at all.

Each variant is counted with few tokens and with many, and the difference is divided by the difference in tokens: what
comes once, such as the start of Python, cancels out.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from moegate.bench.ablation_driver import Call
from moegate.ops.library import KERNELS

PERF = "perf stat -e instructions:u"
CALLGRIND = (
    "valgrind --tool=callgrind, which emulates no AVX-512: the AVX2 kernels are counted, also where times are not"
)
_DRIVER = (sys.executable, "-m", "moegate.bench.ablation_driver")
_KERNEL = "topk_gate_ablation_rows"
# Of two options with the same pattern callgrind heeds the first alone, so these two differ.
_ENTERED, _LEFT = f"*{_KERNEL}*", f"*{_KERNEL[len('topk_') :]}*"
_EVENT = ("stat", "-x", ",", "-e", "instructions:u")
_FEW_TOKENS, _MANY_TOKENS = 32, 288
_FEW_REPEATS, _MANY_REPEATS = 1, 33  # of 4096 tokens: a start of Python varies by millions of instructions
_TOKENS = 4096
_SECONDS = 900


@dataclass(frozen=True)
class Counts:
    """Instructions a token by call, and how they were counted or why they were not."""

    how: str
    per_token: dict[Call, float] = field(default_factory=dict)


def count(calls: Sequence[Call]) -> Counts:
    """Counts the instructions a token of each call; ``num_tokens`` and ``repeats`` of a call are not looked at."""
    if not KERNELS.loaded:
        return Counts(f"not measured: there are no kernels ({KERNELS.reason})")
    if perf_counts_instructions():
        return Counts(PERF, {call: _by_perf(call) for call in calls})
    if shutil.which("valgrind") is None:
        return Counts("not measured: perf counts no instructions here, and there is no valgrind")
    return by_callgrind(calls)


def perf_counts_instructions() -> bool:
    """Whether there is a ``perf``, and it may read a counter of instructions; virtual machines often have none."""
    return shutil.which("perf") is not None and _perf_stat(("true",)) is not None


def _perf_stat(command: Sequence[str]) -> int | None:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "perf.csv"
        arguments = ["perf", *_EVENT, "-o", str(report), *command]
        done = subprocess.run(arguments, capture_output=True, check=False, timeout=_SECONDS)
        if done.returncode or not report.exists():
            return None
        found = re.search(r"^(\d+),", report.read_text(encoding="utf-8"), flags=re.M)
        return int(found[1]) if found else None


def _by_perf(call: Call) -> float:
    few, many = (
        _perf_stat((*_DRIVER, _listed([replace(call, num_tokens=_TOKENS, repeats=repeats)])))
        for repeats in (_FEW_REPEATS, _MANY_REPEATS)
    )
    if few is None or many is None:
        raise RuntimeError("perf counted instructions before, and now it does not.")
    return (many - few) / (_TOKENS * (_MANY_REPEATS - _FEW_REPEATS))


def by_callgrind(calls: Sequence[Call]) -> Counts:
    """Counts in one process: from zero when the kernel is entered, in a file of its own each time it is left."""
    sized = [replace(call, num_tokens=tokens, repeats=1) for call in calls for tokens in (_FEW_TOKENS, _MANY_TOKENS)]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "valgrind",
            "--tool=callgrind",
            f"--zero-before={_ENTERED}",
            f"--dump-after={_LEFT}",
            f"--callgrind-out-file={folder}/out",
            *_DRIVER,
            _listed(sized),
        ]
        alone = {**os.environ, "OMP_NUM_THREADS": "1"}
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS, env=alone)
        except subprocess.TimeoutExpired:
            return Counts(f"not measured: valgrind took more than {_SECONDS} s")
        if done.returncode:
            return Counts(f"not measured: valgrind ended with status {done.returncode}")
        # A file "out" without a number holds what follows the last call.
        counted = [total_of(path) for path in _in_order(Path(folder).glob("out.*"))]
    if len(counted) != len(sized):
        return Counts(f"not measured: callgrind saw {len(counted)} calls of the kernel, not {len(sized)}")
    differences = [many - few for few, many in zip(counted[::2], counted[1::2], strict=True)]
    tokens = _MANY_TOKENS - _FEW_TOKENS
    return Counts(CALLGRIND, {call: found / tokens for call, found in zip(calls, differences, strict=True)})


def _in_order(paths: Iterable[Path]) -> list[Path]:
    return sorted((path for path in paths if path.suffix[1:].isdigit()), key=lambda path: int(path.suffix[1:]))


def total_of(path: Path) -> int:
    """The instructions that a file of callgrind counts."""
    found = re.search(r"^(?:summary|totals): (\d+)", path.read_text(encoding="utf-8"), flags=re.M)
    return int(found[1]) if found else 0


def _listed(calls: Sequence[Call]) -> str:
    return json.dumps([asdict(call) for call in calls])
