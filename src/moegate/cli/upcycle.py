"""`moegate upcycle`: a Mixture-of-Experts model out of a dense one, as a folder that transformers reads."""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

EXAMPLES = (
    "moegate upcycle ./Qwen3-0.6B --experts 8 --top-k 2 --output ./Qwen3-MoE",
    "moegate upcycle smollm2 --experts 4 --top-k 2 --output ./SmolMoE",
)
"""Calls that end the help of the verb."""


def upcycle(
    model: Annotated[
        str,
        typer.Argument(help="A folder or a name that transformers loads, a .gguf file, or smollm2.", metavar="MODEL"),
    ],
    experts: Annotated[int, typer.Option("--experts", help="Experts a layer.")],
    top_k: Annotated[int, typer.Option("--top-k", help="Experts a token goes to.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write; it must not exist.")],
    split: Annotated[int, typer.Option(help="Cut each copy into that many smaller experts.")] = 1,
    noise: Annotated[float, typer.Option(help="Noise on the experts, as a share of their deviation.")] = 0.0,
    reinitialize: Annotated[float, typer.Option(help="Share of each expert's neurons to draw anew.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the routers and of the noise.")] = 0,
) -> None:
    """Turn a dense Llama, Mistral or Qwen model into a Mixture-of-Experts model.

    Every expert starts as a copy of the dense feed-forward network. Without noise the new model computes what the dense
    one does. The folder needs no moegate to be loaded.
    """
    if output.exists():
        raise ValueError(f"{output} exists already: choose another folder, or remove it.")
    from moegate import hf

    dense, tokenizer = _loaded(model)
    sparse = hf.upcycle(dense, experts, top_k, split=split, noise=noise, reinitialize=reinitialize, seed=seed)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=output.parent) as folder:
        written = Path(folder, output.name)
        sparse.save_pretrained(written)
        if tokenizer is not None:
            tokenizer.save_pretrained(written)
        written.rename(output)
    parameters = sum(parameter.numel() for parameter in sparse.parameters()) / 1e6
    Console().print(
        f"{output}: {type(sparse).__name__}, {experts} experts, {top_k} a token, {parameters:.1f} M parameters.",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def _loaded(model: str) -> tuple[Any, Any]:
    """The dense model and its tokenizer; None for one that has none."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from moegate.lab.data.pretrained import smollm2

    path = smollm2() if model == "smollm2" else Path(model)
    name, more = (str(path.parent), {"gguf_file": path.name}) if path.suffix == ".gguf" else (model, {})
    dense = AutoModelForCausalLM.from_pretrained(name, **more)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **more)
    except (OSError, ValueError):
        tokenizer = None
    return dense, tokenizer
