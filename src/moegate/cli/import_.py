"""`moegate import`: what another system wrote, read, shown and kept."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from moegate.cli.layer_table import layers_to_list, print_layers
from moegate.report.traces.content import Figures
from moegate.report.traces.names import layer_labels
from moegate.trace import Loads, Trace, layer_table, read, save, save_loads
from moegate.trace.importers import FORMATS

EXAMPLES = (
    "moegate import routed_experts.npy --num-experts 128 --output vllm.safetensors",
    "moegate import response.json --layers 48 --top-k 8 --num-experts 128 -o sglang.safetensors",
    "moegate import moe_trace.csv --output loads.json",
)
"""Calls that end the help of the verb."""


def print_source(source: Trace | Loads, console: Console) -> None:
    """What was read, its layers, and what was assumed."""
    experts = " or ".join(map(str, sorted(set(source.num_experts))))
    sizes = f"{len(source.layers)} layers, {experts} experts"
    if isinstance(source, Trace):
        head = f"A trace of {source.num_tokens:,} tokens, {sizes}, top-{source.top_k}."
    else:
        head = f"Loads without tokens: {source.load.sum().item():,.0f} assignments, {sizes}."
    console.print(head, highlight=False)
    figures = Figures(layer_labels(source.layers), layer_table(source), source.load.double().numpy())
    print_layers(console, figures, layers_to_list(None, len(source.layers)))
    for note in source.metadata.get("notes", ()):
        console.print(f"Note: {escape(str(note))}", highlight=False, style="yellow")


def keep(source: Trace | Loads, output: Path) -> Path:
    """Writes a trace as safetensors and loads as JSON.

    Raises:
        ValueError: the name of the file says the other.
    """
    wanted, what = (".safetensors", "a trace") if isinstance(source, Trace) else (".json", "counts without tokens")
    if output.suffix != wanted:
        raise ValueError(f"{output} must end with {wanted}: the file holds {what}.")
    output.parent.mkdir(parents=True, exist_ok=True)
    return save(source, output) if isinstance(source, Trace) else save_loads(source, output)


def import_(
    file: Annotated[Path, typer.Argument(help="What another system wrote.", metavar="FILE")],
    form: Annotated[
        str | None,
        typer.Option("--format", "-f", help=f"One of {', '.join(FORMATS)}; default: found by the content."),
    ] = None,
    num_experts: Annotated[
        int | None, typer.Option("--num-experts", help="Experts of a layer; default: the largest index + 1.")
    ] = None,
    layers: Annotated[int | None, typer.Option("--layers", help="Layers, where an array has lost its shape.")] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Experts of a token, likewise.")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="Its integers, such as uint8; default: int32.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to keep it: .safetensors for a trace, .json for loads.")
    ] = None,
) -> None:
    """Read the routing that another system wrote, show it, and keep it as a trace.

    Arrays and responses of vLLM, TensorRT-LLM, SGLang and NeMo-RL, dumps of SGLang's recorder, llama.cpp's CSV, and
    counts in JSON. Files are taken for a stranger's: no pickle is executed.
    """
    source = read(file, form, num_experts=num_experts, num_layers=layers, top_k=top_k, dtype=dtype)
    console = Console()
    print_source(source, console)
    if output is not None:
        console.print(f"Written to {escape(str(keep(source, output)))}", highlight=False, soft_wrap=True)
