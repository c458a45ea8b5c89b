"""How much memory a call takes at its peak, as the operating system counts it."""

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def peak_bytes(call: Callable[[], object]) -> int | None:
    """Resident bytes at the peak of a call beyond those before it, what it returns included; None without Linux.

    Good to some hundred KiB: memory comes in pages, and what the allocator kept from before is not counted.

    Example:
        >>> found = peak_bytes(lambda: bytearray(2**25))
        >>> found is None or found >= 2**24
        True
    """
    if not _CLEAR.exists():
        return None
    _give_back_free_memory()
    try:
        _CLEAR.write_text("5", encoding="utf-8")  # sets the peak back to what is resident now
    except OSError:
        return None
    before = _kibibytes("VmRSS")
    call()
    return max(0, _kibibytes("VmHWM") - before) * 1024


def _give_back_free_memory() -> None:
    """Else the call could be served from memory that was freed before, and look free."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _kibibytes(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(encoding="utf-8"), flags=re.M)
    return int(found[1]) if found else 0
