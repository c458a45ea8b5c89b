"""`moegate ascend check`: what a model's routing comes to on Ascend."""

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from moegate.ascend.check import Gate, Report, check_config, read_config

EXAMPLES = ("moegate ascend check config.json", "moegate ascend check path/to/model --json")
"""Calls that end the help of the verb."""


class Task(str, Enum):
    """What `moegate ascend` can do."""

    check = "check"


def layers_of(gate: Gate) -> str:
    """Which layers, where not all have the same gate."""
    return "" if gate.layers == "all" else f" ({gate.layers})"


def gate_table(gate: Gate) -> Table:
    """Who accepts a gate, and why not."""
    title = f"Who accepts {gate.call.operator}{layers_of(gate)}"
    table = Table("release", "devices", "accepts", "why not", title=title, title_justify="left")
    for one in gate.acceptances:
        accepted = "[green]yes[/]" if one.accepted else "[red]no[/]"
        table.add_row(one.generation, one.devices, accepted, escape("; ".join(one.reasons)))
    return table


def watch_table(report: Report) -> Table:
    """What to watch, and where it was reported."""
    table = Table("topic", "what to watch", "reported", title="What to watch", title_justify="left", show_lines=True)
    for one in report.watches:
        table.add_row(escape(one.topic), escape(one.sentence), one.source)
    return table


def print_report(report: Report, console: Console) -> None:
    """The rule, the calls, who accepts them, and what to watch."""
    console.print(f"{report.num_experts} experts, {report.rule!r}", markup=False, soft_wrap=True)
    if not report.gates:
        console.print(
            f"No operator of Ascend computes this gate: {report.rule.score!r} is none of softmax, sigmoid and square "
            "root of softplus. Compute it in PyTorch, as moegate.route does.",
            markup=False,
        )
        return
    for gate in report.gates:
        console.print(f"\nGate{layers_of(gate)}:", style="bold")
        console.print(gate.call.written(), markup=False, highlight=False, soft_wrap=True)
    for operator, python in report.moving:
        console.print(f"\n{'To the experts' if 'init' in operator else 'And back'}:", style="bold")
        console.print(python, markup=False, highlight=False, soft_wrap=True)
    console.print()
    for gate in report.gates:
        console.print(gate_table(gate))
    console.print(watch_table(report))


def ascend(
    task: Annotated[Task, typer.Argument(help="What to do.", metavar="check")],
    config: Annotated[
        Path, typer.Argument(help="A model's config.json, or the folder it is in.", metavar="MODEL_CONFIG.json")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Say which Ascend operators a model's routing needs, who accepts them, and what to watch.

    It reads the configuration only: no device, no weights.
    """
    assert task is Task.check
    report = check_config(read_config(config))
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
        return
    print_report(report, Console())
