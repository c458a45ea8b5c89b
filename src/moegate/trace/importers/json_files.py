"""JSON and JSON Lines of strangers: what can't be read is a sentence that names the file and the line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moegate.trace.json_objects import without_twins

__all__ = ["json_values"]


def json_values(path: Path) -> Iterator[tuple[str, Any]]:
    """The values of a JSON file, one, or of a JSON Lines file, one a line; each with where it is."""
    text = _text(path)
    if path.suffix in {".jsonl", ".ndjson"}:
        yield from _lines(path, text)
        return
    try:
        yield str(path), json.loads(text, object_pairs_hook=without_twins)
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply.") from None
    except ValueError as error:
        if "Extra data" not in str(error):
            raise ValueError(f"{path} is no JSON, or it is cut: {error}.") from None
        yield from _lines(path, text)


def _lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                value = json.loads(line, object_pairs_hook=without_twins)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number} is no JSON, or it is cut: {error}.") from None
            yield f"{path}, line {number}", value


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 (byte {error.start}).") from None
