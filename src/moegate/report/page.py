"""The page: one HTML file that holds its style, its code and its data, and asks the network for nothing."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from moegate.report.content import build_content
from moegate.report.detail import LEVELS
from moegate.report.loading import load
from moegate.trace.whole_file import write_whole

MAX_BYTES = 2_000_000
SHARED_SCRIPTS = (
    "data.js", "format.js", "dom.js", "theme.js", "tooltip.js", "plot.js", "curve.js", "table.js", "heatmap.js",
    "matrices.js", "tokens.js", "sections.js",
)  # fmt: skip
SCRIPTS = (*SHARED_SCRIPTS, "comparison.js", "training.js", "main.js")


def write_report(paths: Iterable[str | Path], output: str | Path) -> Path:
    """Writes one self-contained HTML page about run and sweep directories, and returns its path.

    The page holds everything it shows and stays under 2 MB: where a model is too large for that, training is
    shown in fewer time windows and token views are cut, and the page says so. The file is written whole: an
    interrupted call leaves an older page as it was.

    Args:
        paths: directories that `moegate train` or `moegate sweep` wrote; finished or not.
        output: the HTML file to write; its folder is created.

    Raises:
        ValueError: no path was passed, a directory is neither a run nor a sweep, a file in it is missing or
            damaged, the output is a folder, or there are too many runs for one page.

    Example:
        >>> import tempfile
        >>> from moegate.lab.training import TrainConfig, train
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = train(TrainConfig.create(task="image", steps=2, num_layers=1), Path(folder, "run"))
        ...     page = write_report([Path(folder, "run")], Path(folder, "report.html"))
        ...     page.read_text(encoding="utf-8").startswith("<!doctype html>")
        True
    """
    output = Path(output)
    if output.is_dir():
        raise ValueError(f"{output} is a folder; pass the HTML file to write, such as {output / 'report.html'}.")
    sweeps = load(Path(path) for path in paths)
    for detail in LEVELS:
        page = render(build_content(sweeps, detail)).encode()
        if len(page) <= MAX_BYTES:
            return write_whole(output, page)
    runs = sum(len(sweep.runs) for sweep in sweeps)
    raise ValueError(f"A page about these {runs} runs would exceed {MAX_BYTES:,} bytes; pass fewer of them.")


def render(content: dict[str, Any], scripts: Sequence[str] = SCRIPTS) -> str:
    """The HTML of a page for its data, drawn by these scripts; the last one puts it together."""
    style = _asset("page.css")
    script = f'"use strict";\n(() => {{\n{"".join(map(_asset, scripts))}}})();\n'
    parts = {
        "title": html.escape(f"{content['title']} · moegate report"),
        "policy": f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        "style": style,
        "script": script,
        "data": embed_json(content),
    }
    # One pass over the template, so that nothing in the data can be taken for a placeholder.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("page.html"))


def embed_json(content: Any) -> str:
    """JSON that is inert inside a script element, whatever its strings hold.

    Example:
        >>> embed_json("</script><!--")
        '"\\\\u003c/script>\\\\u003c!--"'
    """
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in ("<", "\u2028", "\u2029"):
        text = text.replace(character, f"\\u{ord(character):04x}")
    # A lone surrogate (a byte of a text that is not UTF-8) cannot be written to a file; JSON can escape it.
    return re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)


def _asset(name: str) -> str:
    return (files("moegate.report") / "assets" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
