"""`moegate place`: experts on devices by what was measured."""

import json
import math
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from moegate.cli.layer_table import layers_to_list, number
from moegate.report.traces.names import layer_labels
from moegate.trace import Loads, Placement, Trace, coactivation, contiguous, read, save_placement
from moegate.trace import place as find_placement
from moegate.trace.placement_files import PLACEMENT_FORMATS, evening, placement_values

EXAMPLES = (
    "moegate place trace.safetensors --devices 8 --hold-out",
    "moegate place trace.safetensors --devices 32 --replicas 32 --output placement.json",
    "moegate place expert_distribution_recorder.pt --devices 8 --format sglang -o init.json",
)
"""Calls that end the help of the verb."""

Form = Enum("Form", {name: name for name in PLACEMENT_FORMATS}, type=str)  # type: ignore[misc]


@dataclass(frozen=True)
class Measured:
    """Two placements on one load: peak over mean by layer and over all, and pairs of experts on one device."""

    before: list[float]
    after: list[float]
    overall: tuple[float, float]
    pairs: tuple[list[float], list[float]] | None

    @classmethod
    def on(cls, load: Tensor, pairs: list[Tensor] | None, before: Placement, after: Placement) -> "Measured":
        """The measurements of both."""
        return cls(
            before.imbalance(load).tolist(),
            after.imbalance(load).tolist(),
            (before.overall_imbalance(load), after.overall_imbalance(load)),
            None if pairs is None else (before.pairs_together(pairs), after.pairs_together(pairs)),
        )


def pairs_of(source: Trace | Loads) -> list[Tensor] | None:
    """Co-activation of each layer; None where no token has two experts, or none are known."""
    if not isinstance(source, Trace) or source.top_k < 2:
        return None
    return [coactivation(source, layer) for layer in range(source.num_layers)]


def halves(source: Trace | Loads) -> tuple[Trace, Trace]:
    """The first and the second half of the tokens.

    Raises:
        ValueError: there are no tokens to halve.
    """
    if not isinstance(source, Trace) or source.num_tokens < 2:
        raise ValueError("--hold-out needs a trace of at least two tokens; this file has only counts, or fewer tokens.")
    first_T = torch.arange(source.num_tokens) < source.num_tokens // 2
    return source.select(tokens=first_T), source.select(tokens=~first_T)


def places_table(measured: Measured, layers: tuple[str, ...], title: str, listed: int | None) -> Table:
    """A row a layer, or the layers whose peak is the highest as placed."""
    if listed is not None:
        title += f"; the {listed} least even layers (--layers all: all)"
    table = Table("layer", title=title, title_justify="left")
    for name in ("load, in order", "load, placed"):
        table.add_column(name, justify="right")
    if measured.pairs is not None:
        for name in ("pairs, in order", "pairs, placed"):
            table.add_column(name, justify="right")
    order, labels = list(range(len(layers))), layer_labels(layers)
    if listed is not None:
        known = [layer for layer in order if not math.isnan(measured.after[layer])]
        order = sorted(known, key=lambda layer: -measured.after[layer])[:listed]
    for layer in order:
        cells = [number(measured.before[layer], 3), number(measured.after[layer], 3)]
        cells += [f"{part[layer]:.1%}".replace("nan%", "–") for part in measured.pairs or ()]
        table.add_row(escape(labels[layer]), *cells)
    return table


def say(console: Console, measured: Measured, where: str) -> None:
    """The overall figures in a line."""
    before, after = measured.overall
    console.print(
        f"{where}: peak over mean of all layers [bold]{number(after, 3)}[/] as placed, {number(before, 3)} with the "
        "experts in order.",
        highlight=False,
    )


def finite(value: float) -> float | None:
    """The value for JSON; None for NaN, of a layer without any load."""
    return None if math.isnan(value) else value


def as_values(placement: Placement, form: str, measured: dict[str, Measured], fitted_on: str) -> dict[str, Any]:
    """JSON values of everything that is shown."""
    figures = {
        name: {
            "in_order": finite(one.overall[0]),
            "placed": finite(one.overall[1]),
            "layers": {"in_order": list(map(finite, one.before)), "placed": list(map(finite, one.after))},
        }
        for name, one in measured.items()
    }
    return {"fitted_on": fitted_on, "peak_over_mean": figures, "placement": placement_values(placement, form)}


def place(
    trace: Annotated[Path, typer.Argument(help="A trace, or a file that `moegate import` reads.", metavar="TRACE")],
    devices: Annotated[int, typer.Option("--devices", "-n", help="Devices that share the experts of each layer.")],
    replicas: Annotated[
        int, typer.Option("--replicas", "-r", help="Slots of a layer beyond one an expert, over all devices.")
    ] = 0,
    hold_out: Annotated[
        bool, typer.Option("--hold-out", help="Place by the first half of the tokens, measure on the second.")
    ] = False,
    slack: Annotated[
        float,
        typer.Option(help="How far above the mean a device may get to hold experts of the same tokens, such as 0.01."),
    ] = 0.0,
    by_load: Annotated[bool, typer.Option("--by-load", help="Don't look at which experts go together.")] = False,
    num_experts: Annotated[
        int | None, typer.Option("--num-experts", help="Experts of a layer, where the file doesn't say.")
    ] = None,
    form: Annotated[
        Form, typer.Option("--format", "-f", help="JSON for SGLang, vllm-ascend, EPLB's tables, or plain.")
    ] = Form("eplb"),
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The JSON file to write.")] = None,
    layers: Annotated[
        str | None, typer.Option("--layers", help="How many layers to list, the least even first, or all.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Place experts on devices by measured load, with replicas of the busiest.

    Each layer's time is that of its busiest device, so that the peak over the mean is what an uneven placement costs.
    Tokens of an expert with replicas are shared evenly among them. Every device has the same number of slots; where
    experts and replicas don't fill them all, only --format plain can say so.
    """
    source = read(trace, num_experts=num_experts)
    fitted, other = halves(source) if hold_out else (source, None)
    pairs = None if by_load else pairs_of(fitted)
    found = find_placement(fitted, devices, replicas, pairs=pairs, slack=slack)
    before = contiguous(found.num_experts, devices, found.layers)
    measured = {"all": Measured.on(fitted.load, pairs, before, found)}
    if other is not None:
        measured = {
            "first half": measured["all"],
            "second half": Measured.on(other.load, pairs_of(other), before, found),
        }
    if output is not None:
        save_placement(found, output, form.value)
    if as_json:
        typer.echo(json.dumps(as_values(found, form.value, measured, next(iter(measured))), indent=2))
        return
    console = Console()
    name, shown = list(measured.items())[-1]
    title = "Peak over mean of the devices' loads; pairs of a token on one device" + (
        f" ({name})" if other is not None else ""
    )
    console.print(places_table(shown, found.layers, title, layers_to_list(layers, len(found.layers))))
    for where, one in measured.items():
        fit = " (the placement was made for it)" if other is not None and one is not shown else ""
        say(
            console,
            one,
            f"On the {where} of the tokens{fit}" if other is not None else "Measured on what it was placed by",
        )
    if not found.even:
        console.print(
            f"Note: devices hold different numbers of experts, which most servers don't take. To even it, "
            f"{evening(found)}.",
            highlight=False,
            style="yellow",
        )
    if output is not None:
        console.print(f"Written to {escape(str(output))}", highlight=False, soft_wrap=True)
