"""The page about one trace, alone or against another."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moegate.report.page import SHARED_SCRIPTS, render
from moegate.report.traces.compared import compare
from moegate.report.traces.content import Subject, build_content, count
from moegate.report.traces.detail import LEVELS
from moegate.report.traces.views import Decode
from moegate.trace import Loads, Trace
from moegate.trace.whole_file import write_whole

__all__ = ["MAX_BYTES", "SCRIPTS", "check_page", "prepare", "write_page", "write_trace_report"]

MAX_BYTES = 5_000_000
SCRIPTS = (*SHARED_SCRIPTS, "layers.js", "compared.js", "top_k.js", "trace.js")


def write_trace_report(
    trace: Trace | Loads,
    output: str | Path,
    other: Trace | Loads | None = None,
    *,
    decode: Decode | None = None,
    top_k: Sequence[Mapping[str, Any]] = (),
    title: str = "Routing trace",
    names: tuple[str, str] = ("this trace", "the other"),
    common_prefix: bool = False,
) -> Path:
    """Writes one self-contained HTML page about a trace, and returns its path.

    All counts are exact, over every token. Token views show the beginning of some documents. The page stays
    under 5 MB: where a model is too large for that, token views get shorter, and maps of pairs show the busiest
    experts; the foot of the page says so. The file is written whole: an interrupted call leaves an older page as
    it was.

    Args:
        trace: what is shown; of ``Loads``, only the counts can be.
        output: the HTML file to write; its folder is created.
        other: a second trace, to compare with: of the same tokens token by token, else by its loads.
        decode: gives the text of each of a list of token ids, as ``moegate.hf.token_texts`` does with a
            tokenizer; without it, the ids are shown.
        top_k: the results of a sweep over K at inference, the ``to_dict()`` of what ``moegate.hf.sweep_top_k``
            returns.
        title: the heading of the page.
        names: what ``trace`` and ``other`` are called where both are shown.
        common_prefix: compare sequences up to the first token that differs, as ``moegate.trace.diff`` does.

    Raises:
        TypeError: ``trace`` or ``other`` is no trace.
        ValueError: the output is a folder, the traces have different layers, ``decode`` gives another number of
            texts than ids, or the page would be too large.

    Example:
        >>> import tempfile, torch
        >>> from moegate.trace import Trace
        >>> trace = Trace(torch.tensor([[[0, 2]], [[2, 1]]]), layers=("mlp",), num_experts=(4,))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = write_trace_report(trace, Path(folder, "trace.html"))
        ...     page.read_text(encoding="utf-8").startswith("<!doctype html>")
        True
    """
    check_page(output)
    page = prepare(
        trace, other, decode=decode, top_k=top_k, title=title, names=names, common_prefix=common_prefix
    )  # fmt: skip
    return write_page(page, output)


def check_page(output: str | Path) -> None:
    """A ``ValueError`` where no page can be written: what is there is a folder."""
    if Path(output).is_dir():
        raise ValueError(f"{output} is a folder; pass the HTML file to write, such as {Path(output) / 'trace.html'}.")


def prepare(
    trace: Trace | Loads,
    other: Trace | Loads | None = None,
    *,
    decode: Decode | None = None,
    top_k: Sequence[Mapping[str, Any]] = (),
    title: str = "Routing trace",
    names: tuple[str, str] = ("this trace", "the other"),
    common_prefix: bool = False,
) -> Subject:
    """What a page shows, counted; the arguments are those of ``write_trace_report``."""
    for name, value in (("trace", trace), ("other", other)):
        if not isinstance(value, Trace | Loads) and not (name == "other" and value is None):
            raise TypeError(f"{name} is {type(value).__name__}; pass a moegate.trace.Trace, or Loads.")
    comparison = None if other is None else compare(trace, other, names, decode, common_prefix=common_prefix)
    return Subject(trace, count(trace), decode, comparison, top_k, title)


def write_page(subject: Subject, output: str | Path) -> Path:
    """Writes the page at the finest level of detail that fits; returns its path."""
    trace = subject.trace
    for detail in LEVELS:
        page = render(build_content(subject, detail), SCRIPTS).encode()
        if len(page) <= MAX_BYTES:
            return write_whole(Path(output), page)
    raise ValueError(
        f"A page about {trace.num_layers} layers of up to {max(trace.num_experts)} experts would exceed "
        f"{MAX_BYTES:,} bytes; pass a trace of fewer layers."
    )
