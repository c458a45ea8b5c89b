"""`moegate prune-scores`: which experts of a model add least."""

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from moegate.cli.layer_table import number
from moegate.cli.model_runs import DTYPES, Reading, load_subject, score_subject
from moegate.cli.train import option
from moegate.report.traces.names import layer_labels

if TYPE_CHECKING:
    from moegate.hf.saliency import Saliency

EXAMPLES = (
    "moegate prune-scores allenai/OLMoE-1B-7B-0924 --text prose.txt --text code.py --tokens 16384",
    "moegate prune-scores path/to/model --text corpus.txt --keep 48 --output scores.safetensors",
)
"""Calls that end the help of the verb."""


class Score(str, Enum):
    """By what experts are ranked."""

    reap = "reap"
    frequency = "frequency"
    weight = "weight"


def scores_table(found: "Saliency", by: str, listed: int = 3) -> Table:
    """A row a layer: the spread of the scores and the experts with the least."""
    table = Table("layer", title=f"Scores of the experts: {TITLES[by]}", title_justify="left")
    for name in ("experts", "unused", "least", "median", "most"):
        table.add_column(name, justify="right")
    table.add_column("the least")
    rows = zip(layer_labels(found.layers), found.scores(by), found.count, found.num_experts, strict=True)
    for name, padded_E, count_E, size in rows:
        score_E, unused = padded_E[:size], int((count_E[:size] == 0).sum())
        lowest = score_E.argsort(stable=True)[:listed].tolist()
        spread = (f"{value.item():.3g}" for value in (score_E.min(), score_E.quantile(0.5), score_E.max()))
        experts = " ".join(f"{expert}:{score_E[expert].item():.2g}" for expert in lowest)
        table.add_row(escape(name), str(size), str(unused), *spread, experts)
    return table


TITLES = {
    "reap": "mean of router weight times output norm (REAP)",
    "frequency": "share of the tokens",
    "weight": "router weight, mean over all tokens",
}


def kept_table(found: "Saliency", dropped: list[list[int]]) -> Table:
    """What goes, and how much of what the experts of a layer add goes with it."""
    table = Table("layer", title="Experts to drop", title_justify="left")
    table.add_column("added by them", justify="right")
    table.add_column("experts")
    for name, experts, share in zip(layer_labels(found.layers), dropped, shares_of(found, dropped), strict=True):
        table.add_row(escape(name), f"{number(100 * share, 1)} %", " ".join(map(str, sorted(experts))))
    return table


def shares_of(found: "Saliency", dropped: list[list[int]]) -> list[float]:
    """For each layer the share of the sum of ``g · ‖f(x)‖`` that the dropped experts have."""
    rows = zip(found.contribution, dropped, strict=True)
    return [(row_E[experts].sum() / row_E.sum()).item() for row_E, experts in rows]


def as_values(found: "Saliency", by: str, keep: int | None) -> dict[str, Any]:
    """JSON values of the scores, and of what to drop."""
    layers: dict[str, dict[str, Any]] = {}
    for layer, (name, size) in enumerate(zip(found.layers, found.num_experts, strict=True)):
        layers[name] = {score.value: found.scores(score.value)[layer, :size].tolist() for score in Score}
        layers[name]["count"] = found.count[layer, :size].tolist()
    if keep is not None:
        for name, experts in zip(found.layers, found.dropped(keep, by), strict=True):
            layers[name]["drop"] = sorted(experts)
    return {"tokens": int(found.tokens.max()), "by": by, "layers": layers}


def prune_scores(
    model: Annotated[str, typer.Argument(help="A folder of a model, or its name on the Hub.", metavar="MODEL")],
    text: Annotated[list[Path] | None, option("Text file to run the model on; repeatable.", "--text", "-t")] = None,
    corpus: Annotated[Path | None, option("Folder of texts, with a sub-folder a domain.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens at most, of all texts together, of each as many.")] = 16_384,
    batch_size: Annotated[int, typer.Option(help="Windows of a batch.")] = 4,
    sequence_length: Annotated[int, typer.Option(help="Tokens of a window.")] = 512,
    device: Annotated[str, typer.Option(help="Where the model runs: cpu, cuda, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help=f"Of the weights: {', '.join(DTYPES)}.")] = "auto",
    keep: Annotated[
        int | None, typer.Option("--keep", "-k", help="Experts of a layer that stay: lists which would go.")
    ] = None,
    by: Annotated[Score, typer.Option("--by", help="The score to rank by.")] = Score.reap,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A .safetensors file for the scores by layer and expert.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Score a model's experts by what they add to the output, to see which can go.

    REAP's saliency is the mean over an expert's tokens of router weight times the norm of its output: an expert that is
    seldom chosen but adds much when it is keeps a high score. Nothing is pruned; texts like those of the later use
    decide, so pass several; without any, a sample of several languages and of code is run.
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    reading = Reading(tuple(text or ()), corpus, tokens, batch_size, sequence_length, device, dtype)
    found = score_subject(load_subject(model, reading), Console(stderr=True))
    dropped = None if keep is None else found.dropped(keep, by.value)
    if output is not None:
        from moegate.hf.saliency import save_saliency

        save_saliency(found, output)
    if as_json:
        typer.echo(json.dumps(as_values(found, by.value, keep), indent=2))
        return
    console = Console()
    console.print(f"{int(found.tokens.max()):,} tokens, {len(found.layers)} layers.", highlight=False)
    console.print(scores_table(found, by.value))
    if dropped is not None:
        console.print(kept_table(found, dropped))
    if output is not None:
        console.print(f"Written to {escape(str(output))}", highlight=False, soft_wrap=True)
