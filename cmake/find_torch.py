"""Prints the folder of an installed torch, 2.10 or newer, or nothing; imports nothing of it."""

import os
import re
import site
import sys
import sysconfig
from pathlib import Path

OLDEST = (2, 10)


def folders() -> list[str]:
    """Where packages lie: what this interpreter sees, then the environment it belongs to."""
    return [*sys.path, sysconfig.get_path("platlib"), sysconfig.get_path("purelib"), site.getusersitepackages()]


def is_usable(torch: Path) -> bool:
    """Whether the folder holds a torch that is new enough, with the headers of the stable ABI."""
    version = torch / "version.py"
    if not (torch / "include" / "torch" / "csrc" / "stable" / "library.h").exists() or not version.exists():
        return False
    found = re.search(r"__version__ = '(\d+)\.(\d+)", version.read_text(encoding="utf-8"))
    return found is not None and (int(found[1]), int(found[2])) >= OLDEST


def main() -> None:
    """Prints the first usable one; ``MOEGATE_TORCH`` names one by hand."""
    named = os.environ.get("MOEGATE_TORCH")
    candidates = [named] if named else [os.path.join(folder, "torch") for folder in folders() if folder]  # noqa: PTH118
    print(next((candidate for candidate in candidates if is_usable(Path(candidate))), ""))


main()
