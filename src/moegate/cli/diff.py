"""`moegate diff`: two traces of the same tokens compared."""

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from moegate.cli.layer_table import layers_to_list, number
from moegate.report.traces.names import layer_labels
from moegate.trace import Difference, Trace, read
from moegate.trace import diff as compare

EXAMPLES = (
    "moegate diff bfloat16.safetensors float32.safetensors --output page.html",
    "moegate diff train.safetensors vllm_response.json --tokens common-prefix --json",
)
"""Calls that end the help of the verb."""


class Tokens(str, Enum):
    """Which tokens are compared."""

    same = "same"
    common_prefix = "common-prefix"


def layers_table(found: Difference, listed: int | None) -> Table:
    """A row a layer, or the layers that agree least; columns of what was not recorded are left out."""
    title = "Agreement by layer" if listed is None else f"The {listed} layers that agree least (--layers all: all)"
    table = Table("layer", title=title, title_justify="left")
    margins = any(row.margin_same is not None for row in found.layers)
    weights = any(row.weight_moved is not None for row in found.layers)
    names = ["experts agree", "by chance", "same set", "part first"]
    names += ["margin, same", "margin, parted"] * margins + ["weight moved"] * weights
    for name in names:
        table.add_column(name, justify="right")
    rows = list(zip(layer_labels([row.layer for row in found.layers]), found.layers, strict=True))
    if listed is not None:
        rows = sorted((pair for pair in rows if pair[1].tokens), key=lambda pair: pair[1].agreement)[:listed]
    for name, row in rows:
        cells = [f"{row.agreement:.2%}", f"{row.chance:.1%}", f"{row.exact:.2%}", f"{row.first:,}"]
        cells += [number(row.margin_same, 3), number(row.margin_parted, 3)] * margins
        if row.weight_moved is not None:
            cells.append(f"{row.weight_moved:.2%}")
        table.add_row(escape(name), *(cell.replace("nan%", "–") for cell in cells))
    return table


def tokens_table(found: Difference) -> Table:
    """The tokens that differ in most layers."""
    table = Table(title="Tokens that differ most", title_justify="left")
    for name in ("token", "id", "document", "layers that differ", "first layer", "experts agree"):
        table.add_column(name, justify="right")
    names = [row.layer for row in found.layers]
    short = dict(zip(names, layer_labels(names), strict=True))
    for one in found.extremes:
        known = ("–" if value is None else str(value) for value in (one.token_id, one.document_id))
        cells = (
            f"{one.layers_differing} of {len(found.layers)}",
            escape(short[one.first_layer]),
            f"{one.agreement:.1%}",
        )
        table.add_row(str(one.row), *known, *cells)
    return table


def read_trace(path: Path) -> Trace:
    """A trace of any format.

    Raises:
        ValueError: the file has only loads.
    """
    source = read(path)
    if not isinstance(source, Trace):
        raise ValueError(f"{path} has only counts of assignments: a comparison needs the experts of each token.")
    return source


def diff(
    first: Annotated[Path, typer.Argument(help="A trace, or a file that `moegate import` reads.", metavar="A")],
    second: Annotated[Path, typer.Argument(help="Another one of the same tokens.", metavar="B")],
    tokens: Annotated[
        Tokens, typer.Option(help="common-prefix: compare sequences up to the first token that differs.")
    ] = Tokens.same,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="An HTML page of both, to write.")] = None,
    show: Annotated[int, typer.Option("--show", help="How many of the tokens that differ most are listed.")] = 5,
    layers: Annotated[
        str | None, typer.Option("--layers", help="How many layers to list, those that agree least first, or all.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Compare two traces of the same tokens: how far their experts agree, and where they part.

    The order of a token's experts does not matter. With logits in a trace it says whether they part at close calls, as
    after rounding, or at clear choices.
    """
    a, b = read_trace(first), read_trace(second)
    prefix = tokens is Tokens.common_prefix
    found = compare(a, b, common_prefix=prefix, extremes=show)
    if output is not None:
        from moegate.report import write_trace_report

        names = (first.stem, second.stem)
        write_trace_report(a, output, b, title=" and ".join(names), names=names, common_prefix=prefix)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
        return
    console = Console()
    console.print(escape(found.verdict), style="bold", highlight=False)
    if found.tokens:
        console.print(layers_table(found, layers_to_list(layers, len(found.layers))))
    if found.extremes:
        console.print(tokens_table(found))
    for note in found.notes:
        console.print(f"Note: {escape(note)}", highlight=False, style="yellow")
    if output is not None:
        console.print(f"Written to {escape(str(output))}", highlight=False, soft_wrap=True)
