"""What a machine is: processor, cores, versions. Needs nothing but Python, so that any verb may ask."""

import importlib.metadata
import os
import platform
from typing import Any

# The instruction sets that matter for routing and matrix products, in the spelling of Linux and of macOS.
NOTABLE_FLAGS = (
    *("avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8"),
    *("asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2", "sme"),
)


def installed_version(name: str) -> str | None:
    """The version of an installed distribution; None without it. Imports nothing."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_facts(cpuinfo: str) -> dict[str, Any]:
    """Model and notable instruction sets from the text of Linux's /proc/cpuinfo (empty elsewhere)."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return {
        "model": fields.get("model name") or platform.processor() or platform.machine(),
        "flags": [flag for flag in NOTABLE_FLAGS if flag in flags],
    }


def usable_cores() -> int:
    """The cores this process may use, which in a container can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
