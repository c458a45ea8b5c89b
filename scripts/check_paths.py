"""Fail when a tracked text file names a path of one particular machine, such as somebody's home directory."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# /home/me and /home/you stand for anybody's.
MACHINE_PATH = re.compile(r"(?<![\w.~])/(?!home/(?:me|you)\b)(?:home|Users|root|work|mnt)/[\w.-]+")


def tracked_files() -> list[Path]:
    """What git tracks in this repository."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name]


def machine_paths(path: Path) -> list[str]:
    """`file:line: match` for each machine path in one file; nothing for a binary file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        return []
    return [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}"
        for number, line in enumerate(lines, start=1)
        for match in MACHINE_PATH.finditer(line)
    ]


def main() -> int:
    """Check the files passed as arguments, or all tracked ones."""
    paths = [Path(argument).resolve() for argument in sys.argv[1:]] or tracked_files()
    found = [line for path in paths if path.is_file() for line in machine_paths(path)]
    print("\n".join(found) if found else "no machine paths")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
