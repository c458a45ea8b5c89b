"""Where rows are kept: one JSON line each, appended whole as soon as it is measured."""

import json
import os
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Results:
    """The rows of one suite in ``FOLDER/SUITE.jsonl``.

    Example:
        >>> results = Results(Path("found"), "gate")
        >>> results.append({"case": "softmax"})
        >>> results.rows()
        [{'case': 'softmax'}]
    """

    def __init__(self, folder: Path, suite: str) -> None:
        self.path = folder / f"{suite}.jsonl"

    def append(self, row: Row) -> None:
        """Adds a row with one write, on a line of its own even where an earlier write was cut off."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(row) + "\n"
        with self.path.open("ab+") as file:
            if file.tell() and not self._ends_a_line(file):
                line = "\n" + line
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    @staticmethod
    def _ends_a_line(file: Any) -> bool:
        file.seek(-1, os.SEEK_END)
        return bool(file.read(1) == b"\n")

    def rows(self) -> list[Row]:
        """All rows that are whole, the oldest first."""
        if not self.path.exists():
            return []
        found = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # cut off in the middle
            if isinstance(row, dict):
                found.append(row)
        return found

    def measured(self, circumstances: Row, *, quick: bool) -> dict[tuple[str, int], Row]:
        """``(key, threads)`` -> the last row of the same code, machine, versions and effort; none for uncommitted
        code."""
        if circumstances["commit"].endswith("-dirty"):
            return {}
        same = [
            row
            for row in self.rows()
            if all(row.get(name) == circumstances[name] for name in ("commit", "machine", "versions"))
            and row.get("quick", False) == quick
            and {"key", "threads"} <= row.keys()
        ]
        return {(row["key"], row["threads"]): row for row in same}
