"""The run's own log: one JSON object a line, safe against interruption and cut back on resume."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class JsonlLogger:
    """Appends each record to a file as one line and flushes it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "metrics.jsonl")
        ...     logger = JsonlLogger(path)
        ...     logger.log(1, {"step": 1, "loss": 0.5})
        ...     logger.close()
        ...     path.read_text()
        '{"step": 1, "loss": 0.5}\\n'
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def log(self, step: int, record: Mapping[str, Any]) -> None:
        """Append the record as one line."""
        self._file.write(json.dumps({"step": step, **record}, allow_nan=False) + "\n")
        self._file.flush()

    def finish(self, evaluation: Mapping[str, Any]) -> None:
        """Close; the evaluation has a file of its own."""
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a log; a half-written last line (a killed run) is left out.

    Raises:
        ValueError: a damaged line before the last one.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "metrics.jsonl")
        ...     _ = path.write_text('{"step": 1}\\n{"st')
        ...     read_metrics(path)
        [{'step': 1}]
    """
    records: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise ValueError(f"Line {number} of {path} is damaged: {error}.") from error
    return records


def keep_until(path: Path, step: int) -> str:
    """Return the text of the log up to and including `step`: what a resumed run starts from.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "metrics.jsonl")
        ...     _ = path.write_text('{"step": 1}\\n{"step": 2}\\n')
        ...     keep_until(path, 1)
        '{"step": 1}\\n'
    """
    kept = [record for record in read_metrics(path) if record["step"] <= step]
    return "".join(json.dumps(record) + "\n" for record in kept)
