"""``read``: moegate's own traces and the files of other systems, by what is in them."""

from difflib import get_close_matches
from pathlib import Path

from moegate.trace.file import is_trace, load
from moegate.trace.importers import FORMATS, Format, Hints
from moegate.trace.loads import Loads
from moegate.trace.trace import Trace

__all__ = ["read"]

OWN = "moegate"
_HEAD = 4096


def read(
    path: str | Path,
    format: str | None = None,
    *,
    num_experts: int | None = None,
    num_layers: int | None = None,
    top_k: int | None = None,
    dtype: str | None = None,
) -> Trace | Loads:
    """A trace, or loads where a file has only counts, of moegate's own file or of another system's.

    What a file of another system doesn't say can be passed. Without a number of experts the largest index + 1 is
    taken, and a note in ``metadata["notes"]`` says so. No pickle is executed, whatever the file.

    Args:
        path: the file.
        format: ``"moegate"`` or a key of ``moegate.trace.importers.FORMATS``; None to recognise it by its content.
        num_experts: ``E`` of every layer.
        num_layers: ``L``, for base64 text without a shape (SGLang).
        top_k: ``K``, likewise.
        dtype: the integers of that text; ``"int32"`` if not passed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is of no known format, or cut, damaged or inconsistent; the sentence names the place.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "counts.json"
        ...     _ = path.write_text('{"3": {"0": 5, "2": 1}}')
        ...     read(path, num_experts=4).load.tolist()
        [[5, 0, 1, 0]]
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"There is no file {source}.")
    hints = Hints(num_experts=num_experts, num_layers=num_layers, top_k=top_k, dtype=dtype)
    if format == OWN or (format is None and (source.suffix == ".safetensors" or is_trace(source))):
        return _agreeing(load(source), source, num_experts)
    row = _recognised(source) if format is None else _named(format)
    try:
        return _agreeing(row.read(source, hints), source, num_experts)
    except (MemoryError, OverflowError, RecursionError):
        raise ValueError(f"{source} says that it holds more than can be read; it may be damaged.") from None


def _agreeing(found: Trace | Loads, source: Path, num_experts: int | None) -> Trace | Loads:
    if num_experts is not None and (wrong := [size for size in found.num_experts if size != num_experts]):
        raise ValueError(
            f"{source} says that a layer has {wrong[0]} experts, so that num_experts can't be {num_experts}."
        )
    return found


def _named(name: str) -> Format:
    if name not in FORMATS:
        close = get_close_matches(name, FORMATS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{name!r} is no format; there are {', '.join((OWN, *FORMATS))}.{hint}")
    return FORMATS[name]


def _recognised(source: Path) -> Format:
    with source.open("rb") as stream:
        head = stream.read(_HEAD)
    if not head:
        raise ValueError(f"{source} is empty.")
    for row in FORMATS.values():
        if row.recognises(source, head):
            return row
    raise ValueError(
        f"{source} is no trace and, by its first bytes, none of the formats {', '.join(FORMATS)}. If it is one, "
        "pass the format."
    )
