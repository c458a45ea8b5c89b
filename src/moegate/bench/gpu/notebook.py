"""What the processes of a sitting tell each other: rows on disk, and whose turn it is right now."""

import json
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moegate.bench.gpu.measuring import CAPTURE, Known
from moegate.bench.results import Results, Row

FILE = "cuda"
"""Rows go to ``cuda.jsonl``, tables to ``cuda.md``."""
_MOST_ENDS = 2


class Notebook:
    """The rows of one sitting, and the note of the process that is at work.

    Example:
        >>> notebook = Notebook(Path("found"), "a sitting")
        >>> notebook.turn("gate", "softmax", "PyTorch", "check")
        >>> notebook.blame("it hung")
        >>> notebook.known("gate", "softmax").lost
        {'PyTorch': 'it hung'}
    """

    def __init__(self, folder: Path, sitting: str) -> None:
        self.folder, self.sitting = folder, sitting
        self._results = Results(folder, FILE)
        self._note = folder / f".{FILE}-turn.json"

    def append(self, row: Row) -> None:
        """Keeps a row at once."""
        self._results.append({"sitting": self.sitting, **row})

    def rows(self) -> list[Row]:
        """The rows of this sitting."""
        return [row for row in self._results.rows() if row.get("sitting") == self.sitting]

    def measured(self, suite: str) -> set[str]:
        """The keys of the cases that are done."""
        return {row["key"] for row in self.rows() if row["suite"] == suite and "lost" not in row}

    def turn(self, suite: str, key: str, who: str, step: str) -> None:
        """Notes whose turn it is, so that a process that dies leaves a culprit; one write, replaced whole."""
        self._note.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"suite": suite, "key": key, "who": who, "step": step, "since": time.time()})
        temporary = self._note.with_suffix(".new")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self._note)

    def current(self) -> dict[str, Any] | None:
        """The last note; None without one."""
        try:
            found: dict[str, Any] = json.loads(self._note.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return None
        return found

    def forget(self) -> None:
        """Removes the note."""
        self._note.unlink(missing_ok=True)

    def blame(self, reason: str) -> None:
        """Keeps who was at work when a process ended as it should not: the next one goes on without it."""
        current = self.current()
        if current is not None:
            self.append({**{name: current[name] for name in ("suite", "key")}, "lost": {**current, "reason": reason}})
            self.forget()

    def known(self, suite: str, key: str) -> Known:
        """What earlier processes found about a case.

        Each end of a process takes seconds or minutes, and a suite survives few of them: so whose capture broke one off
        is not captured in other cases either, and who ended two takes no part in any.
        """
        ends = [row for row in self.rows() if row["suite"] == suite and "lost" in row]
        lost, eager = _culprits([row for row in ends if row["key"] == key])
        lost_elsewhere, eager_elsewhere = _culprits([row for row in ends if row["key"] != key])
        ended = Counter(row["lost"]["who"] for row in ends if row["lost"]["step"] != CAPTURE)
        peers_lost = {who: reason for who, reason in lost_elsewhere.items() if ended[who] >= _MOST_ENDS}
        return Known(lost, frozenset(eager - lost.keys()), peers_lost, frozenset(eager_elsewhere))


def _culprits(ends: Iterable[Row]) -> tuple[dict[str, str], set[str]]:
    """Who takes part no more, and why; and who is not captured again."""
    lost: dict[str, str] = {}
    eager: set[str] = set()
    for row in ends:
        who, step = row["lost"]["who"], row["lost"]["step"]
        if step == CAPTURE and who not in eager:
            eager.add(who)  # once: a second end is not the capture's fault
        else:
            lost[who] = row["lost"]["reason"]
    return lost, eager
