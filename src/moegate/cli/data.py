"""`moegate data`: the table of the data that the lab trains on."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from moegate.lab.data import images, text
from moegate.lab.data.cache import cache_root
from moegate.lab.data.rows import DataRow


def data_table(rows: list[DataRow]) -> Table:
    """Domain, sizes of both splits, origin, licence; one row a domain, and the sum of all text."""
    table = Table("domain", title="Data", title_justify="left")
    for name in ("train", "validation"):
        table.add_column(name, justify="right")
    for name in ("unit", "source", "licence"):
        table.add_column(name)
    for row in rows:
        sizes = (f"{row.train:,}", f"{row.validation:,}")
        table.add_row(escape(row.domain), *sizes, row.unit, escape(row.source), escape(row.licence))
    texts = [row for row in rows if row.unit == "bytes"]
    table.add_section()
    sums = (f"{sum(row.train for row in texts):,}", f"{sum(row.validation for row in texts):,}")
    table.add_row("all text", *sums, "bytes")
    return table


def data(
    corpus: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A corpus of your own: one subfolder a domain, text files in it."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead of a table.")] = False,
) -> None:
    """Show the data: domains, sizes of the splits, sources, licences."""
    rows = text.describe(text.load(corpus))
    if corpus is None:
        rows = images.describe() + rows
    if as_json:
        typer.echo(json.dumps([row._asdict() for row in rows], indent=2))
        return
    console = Console()
    console.print(data_table(rows))
    if corpus is None:
        console.print(f"Kept in {escape(str(cache_root()))} (MOEGATE_CACHE sets another folder).", style="dim")
