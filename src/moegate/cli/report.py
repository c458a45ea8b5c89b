"""`moegate report`: one HTML page about runs or sweeps."""

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from moegate.report import write_report

EXAMPLES = ("moegate report runs/first", "moegate report runs/k runs/balance --output report.html --open")
"""Calls that end the help of the verb."""


def report(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Folders that `moegate train` or `moegate sweep` wrote.", metavar="RUN_OR_SWEEP..."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file to write.")] = Path("report.html"),
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Write one self-contained HTML page about runs or sweeps.

    The page needs no network: send it, archive it, open it from disk. Unfinished runs are shown as such.
    """
    page = write_report(paths, output)
    typer.echo(f"{page.resolve()} ({page.stat().st_size / 1e6:.2f} MB)")
    if open_page:
        webbrowser.open(page.resolve().as_uri())
