"""Responses of servers, in JSON: the routed experts wherever they are, with the token ids beside them.

- vLLM: ``choices[].routed_experts``, and ``prompt_routed_experts`` of the request; in later engines one array of all
  tokens but the last.
- TensorRT-LLM: ``routed_experts`` of a completion, all tokens but the last.
- SGLang: ``meta_info.routed_experts``, or ``sglext.routed_experts`` in its OpenAI-style answers; or its base64 text
  alone, a line a sequence.
- NeMo-RL: an envelope, in a field ``routed_experts`` or as the whole text.

Names of fields differ between versions. The token ids are taken from ``prompt_token_ids`` and the first of
``token_ids``, ``completion_token_ids``, ``output_token_ids``, ``output_ids`` that is there.
"""

import mmap
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moegate.trace.importers.building import Document, trace_of
from moegate.trace.importers.encodings import ENVELOPE, decoded
from moegate.trace.importers.hints import Hints
from moegate.trace.importers.json_files import json_values
from moegate.trace.trace import Trace

__all__ = ["read_responses", "recognises_responses"]

ROUTED = "routed_experts"
PROMPT = "prompt_routed_experts"
COMPLETION_IDS = ("token_ids", "completion_token_ids", "output_token_ids", "output_ids")
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{16,}={0,2}")
_START = 4096
_INHERITED = (PROMPT, "prompt_token_ids", *COMPLETION_IDS, "prompt_tokens", "completion_tokens")


def recognises_responses(path: Path, head: bytes) -> bool:
    """Whether a file is an envelope, base64, nested lists of numbers, or JSON with a field ``routed_experts``."""
    start = b"".join(head.removeprefix(b"\xef\xbb\xbf").split())
    if start.startswith((ENVELOPE.encode(), b'"' + ENVELOPE.encode(), b"[[[")) or _is_base64(head):
        return True
    if not start.startswith((b"{", b"[")):
        return False
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b'routed_experts"') >= 0


def read_responses(path: Path, hints: Hints) -> Trace:
    """The trace of all responses in a file, each a document; a prompt that several completions share comes once."""
    documents = []
    for where, value in _values(path):
        if isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], list)):
            documents.append(Document(decoded(value, where, hints), where))
        else:
            documents += list(_found(value, where, {}, hints))
    return trace_of([document for document in documents if len(document.indices)], path, "routed-experts", hints)


def _values(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as stream:
        start = stream.read(_START)
    if not start.startswith(b'"') and (start.startswith(ENVELOPE.encode()) or _is_base64(start)):
        for number, line in enumerate(path.read_text(encoding="ascii", errors="replace").split(), start=1):
            yield f"{path}, line {number}", line
    else:
        yield from json_values(path)


def _is_base64(head: bytes) -> bool:
    """Whether the first line is base64 and nothing else, or a string in JSON of it."""
    first, _, _ = head.partition(b"\n")
    return bool(_BASE64.fullmatch(first.strip().strip(b'"')))


def _found(value: Any, where: str, around: Mapping[str, Any], hints: Hints) -> Iterator[Document]:
    """The documents below a value; ``around`` is what the objects around it said."""
    if isinstance(value, list):
        # Lists of numbers hold no responses, and may be long.
        if value and isinstance(value[0], dict):
            for position, entry in enumerate(value):
                for document in _found(entry, f"{where}[{position}]", around, hints):
                    # The prompt went through the model once, however many completions it has.
                    around = {**around, PROMPT: None, "prompt_token_ids": None} if PROMPT in around else around
                    yield document
        return
    if not isinstance(value, dict):
        return
    known = {**around, **{name: value[name] for name in _INHERITED if value.get(name) is not None}}
    if isinstance(meta := value.get("meta_info"), dict):
        known |= {name: meta[name] for name in _INHERITED if meta.get(name) is not None}
    if value.get(ROUTED) is not None:
        yield _document(value[ROUTED], known, f"{where}.{ROUTED}", hints)
        return
    below = [
        document
        for name, entry in value.items()
        if isinstance(entry, dict | list)
        for document in _found(entry, f"{where}.{name}", known, hints)
    ]
    if not below and value.get(PROMPT) is not None:
        below = [_document([], known, f"{where}.{PROMPT}", hints)]
    yield from below


def _document(value: Any, known: Mapping[str, Any], where: str, hints: Hints) -> Document:
    prompt_ids, completion_ids = _ids(known.get("prompt_token_ids")), None
    for name in COMPLETION_IDS:
        if completion_ids is None:
            completion_ids = _ids(known.get(name))
    indices = decoded(value, where, hints, _rows(known, prompt_ids, completion_ids))
    if known.get(PROMPT) is not None:
        prompt = decoded(known[PROMPT], f"{where} ({PROMPT})", hints, None if prompt_ids is None else len(prompt_ids))
        if len(indices) and prompt.shape[1:] != indices.shape[1:]:
            raise ValueError(
                f"{where}: the prompt has {prompt.shape[1:]} layers and experts, the completion {indices.shape[1:]}."
            )
        indices = np.concatenate([prompt, indices]) if len(indices) else prompt
    return Document(indices, where, _aligned(len(indices), prompt_ids, completion_ids))


def _rows(known: Mapping[str, Any], prompt_ids: Any, completion_ids: Any) -> int | None:
    """The tokens that went through the model, all but the last, where the response counts or lists them."""
    if known.get(PROMPT) is None:
        counts = [known.get(name) for name in ("prompt_tokens", "completion_tokens")]
        whole = [count for count in counts if type(count) is int and count >= 0]
        if len(whole) == 2:
            return max(sum(whole) - 1, 0)
        if prompt_ids is not None and completion_ids is not None:
            return max(len(prompt_ids) + len(completion_ids) - 1, 0)
    return None


def _ids(value: object) -> NDArray[Any] | None:
    if not isinstance(value, list):
        return None
    try:
        ids = np.array(value, dtype=object if not value else None)
    except (ValueError, OverflowError):
        return None
    return ids.astype(np.int64) if ids.ndim == 1 and (ids.dtype.kind in "iu" or not value) else None


def _aligned(rows: int, prompt_ids: NDArray[Any] | None, completion_ids: NDArray[Any] | None) -> NDArray[Any] | None:
    """The ids of the rows, where the lists fit them: one a row, or one more, of the token that came last."""
    parts = [ids for ids in (prompt_ids, completion_ids) if ids is not None]
    if not parts:
        return None
    ids = np.concatenate(parts)
    return ids[:rows] if len(ids) - rows in {0, 1} else None
