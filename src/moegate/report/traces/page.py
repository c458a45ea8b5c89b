"""The page about one trace, alone or against another."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moegate.report.page import SHARED_SCRIPTS, render, write_whole
from moegate.report.traces.compared import compare
from moegate.report.traces.content import Subject, build_content, count
from moegate.report.traces.detail import LEVELS
from moegate.report.traces.views import Decode
from moegate.trace.loads import Loads
from moegate.trace.trace import Trace

__all__ = ["MAX_BYTES", "SCRIPTS", "write_trace_report"]

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
        decode: gives the text of each of a list of token ids, such as that of ``moegate.hf.token_texts``; without
            it, the ids are shown.
        top_k: the results of a sweep over K at inference, as ``moegate.hf.sweep_top_k`` returns them.
        title: the heading of the page.
        names: what ``trace`` and ``other`` are called where both are shown.

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
    output = Path(output)
    if output.is_dir():
        raise ValueError(f"{output} is a folder; pass the HTML file to write, such as {output / 'trace.html'}.")
    for name, value in (("trace", trace), ("other", other)):
        if not isinstance(value, Trace | Loads) and not (name == "other" and value is None):
            raise TypeError(f"{name} is {type(value).__name__}; pass a moegate.trace.Trace, or Loads.")
    figures = count(trace)
    comparison = None if other is None else compare(trace, other, names, decode)
    subject = Subject(trace, figures, decode, comparison, top_k, title)
    for detail in LEVELS:
        page = render(build_content(subject, detail), SCRIPTS).encode()
        if len(page) <= MAX_BYTES:
            return write_whole(output, page)
    raise ValueError(
        f"A page about {trace.num_layers} layers of up to {max(trace.num_experts)} experts would exceed "
        f"{MAX_BYTES:,} bytes; pass a trace of fewer layers."
    )
