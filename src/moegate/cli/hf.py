"""`moegate hf families`: how the MoE architectures of transformers route, and what is known about each."""

import json
from enum import Enum
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from moegate.hf.catalogue import Entry, catalogue
from moegate.report.wording import describe_rule

EXAMPLES = ("moegate hf families", "moegate hf families --json")
"""Calls that end the help of the verb."""

COLUMNS = ("family", "model type", "status", "rule, by the default configuration", "bias", "special")
"""The columns of the table."""


class Task(str, Enum):
    """What `moegate hf` can do."""

    families = "families"


def cells(entry: Entry) -> tuple[str, ...]:
    """One row of the table, in words."""
    rule = entry.no_rule if entry.rule is None else describe_rule(entry.rule.to_dict(), top_k="K")
    return entry.family, entry.model_type, entry.status, rule, entry.bias, entry.special


def as_markdown(entries: list[Entry]) -> str:
    """The table as the documentation has it."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *map(cells, entries)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def as_json(entries: list[Entry]) -> str:
    """A list of objects, one a row, with the rule as its own JSON."""
    rows = [
        {
            **dict(zip(("family", "model_type", "status"), cells(entry), strict=False)),
            "block": entry.block,
            "rule": None if entry.rule is None else entry.rule.to_dict(),
            "no_rule": entry.no_rule,
            "bias": entry.bias,
            "special": entry.special,
        }
        for entry in entries
    ]
    return json.dumps(rows, indent=2)


def as_table(entries: list[Entry]) -> Table:
    """The table for a terminal."""
    without = sum(entry.rule is None for entry in entries)
    title = f"{len(entries)} MoE blocks of transformers, {without} of them without a rule"
    table = Table(*COLUMNS, title=title, title_justify="left", show_lines=True)
    for entry in entries:
        family, model_type, status, *words = map(escape, cells(entry))
        table.add_row(family, model_type, f"[green]{status}[/]" if entry.rule else f"[red]{status}[/]", *words)
    return table


def hf(
    task: Annotated[Task, typer.Argument(help="What to do.", metavar="families")],
    json_wanted: Annotated[bool, typer.Option("--json", help="Print a JSON list instead of a table.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table instead.")] = False,
) -> None:
    """Say how the MoE architectures of transformers route, where their biases live, and what is special.

    It reads the default configurations of transformers: no model, no weights.
    """
    assert task is Task.families
    if json_wanted and markdown:
        raise ValueError("--json and --markdown are two forms of one table: choose one of them.")
    entries = catalogue()
    if json_wanted:
        typer.echo(as_json(entries))
    elif markdown:
        typer.echo(as_markdown(entries))
    else:
        Console().print(as_table(entries))
