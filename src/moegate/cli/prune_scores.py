"""`moegate prune-scores`: which experts of a model add least."""

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from moegate.cli.import_ import number
from moegate.trace.names import short_names

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
    rows = zip(short_names(found.layers), found.scores(by), found.count, found.num_experts, strict=True)
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
    for name, experts, share in zip(short_names(found.layers), dropped, shares_of(found, dropped), strict=True):
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


def scored(model: str, texts: list[Path], sizes: dict[str, int], *, trusted: bool, quiet: bool) -> "Saliency":
    """The scores of a model over texts, with progress on the terminal."""
    from transformers.utils.logging import disable_progress_bar

    from moegate.hf.loading import load_model, texts_to_batches
    from moegate.hf.saliency import saliency

    # Read first: a misspelt name of a file should not wait for the model.
    contents = [path.read_text(encoding="utf-8", errors="replace") for path in texts]
    if not any(contents):
        raise ValueError(f"There is no text in {', '.join(map(str, texts))}.")
    disable_progress_bar()
    network, tokenizer = load_model(model, trust_remote_code=trusted)
    batches = texts_to_batches(contents, tokenizer, **sizes)  # type: ignore[arg-type] # mypy sees no keys
    columns = (SpinnerColumn(), TextColumn("{task.completed:,.0f} tokens"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as progress:
        task = progress.add_task("", total=None)
        return saliency(network, batches, seen=lambda tokens: progress.advance(task, tokens))


def prune_scores(
    model: Annotated[str, typer.Argument(help="A folder of a model, or its name on the Hub.", metavar="MODEL")],
    text: Annotated[list[Path], typer.Option("--text", "-t", help="A text to run; give several for several domains.")],
    tokens: Annotated[int, typer.Option("--tokens", help="The end, after so many tokens of all texts.")] = 8192,
    sequence_length: Annotated[int, typer.Option(help="Tokens of a window.")] = 512,
    batch_size: Annotated[int, typer.Option(help="Windows of a batch.")] = 4,
    keep: Annotated[
        int | None, typer.Option("--keep", "-k", help="Experts of a layer that stay: lists which would go.")
    ] = None,
    by: Annotated[Score, typer.Option("--by", help="The score to rank by.")] = Score.reap,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A .safetensors file for the scores by layer and expert.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the modelling code that comes with the model.")
    ] = False,
) -> None:
    """Score a model's experts by what they add to the output, to see which can go.

    REAP's saliency is the mean over an expert's tokens of router weight times the norm of its output: an expert that is
    seldom chosen but adds much when it is keeps a high score. Nothing is pruned; texts like those of the later use
    decide, so pass several.
    """
    sizes = {"sequence_length": sequence_length, "batch_size": batch_size, "max_tokens": tokens}
    found = scored(model, text, sizes, trusted=trust_remote_code, quiet=as_json)
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
