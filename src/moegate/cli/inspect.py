"""`moegate inspect`: what a model's router does with a text, or what a trace holds."""

import json
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from moegate.cli.layer_table import layers_to_list, print_layers
from moegate.cli.model_runs import DTYPES, Reading, Subject, load_subject, record_subject, sweep_subject
from moegate.cli.train import option, use_threads
from moegate.report.traces.content import Subject as Page
from moegate.report.traces.page import check_page, prepare, write_page
from moegate.report.traces.views import Decode
from moegate.trace import Loads, Trace, read, save, totals
from moegate.trace.file import check_output

EXAMPLES = (
    "moegate inspect Qwen/Qwen3-30B-A3B --text book.txt --output report.html",
    "moegate inspect models/mine --corpus texts --top-k 1,2,4 --save trace.safetensors",
    "moegate inspect trace.safetensors --compare other.safetensors --output report.html --open",
)
"""Calls that end the help of the verb."""

_FILES = (".safetensors", ".json", ".jsonl", ".csv", ".npy", ".npz", ".pt", ".txt")
"""Endings of files that hold traces."""

_OF_A_MODEL = ("text", "corpus", "top_k", "tokens", "batch_size", "sequence_length", "device", "dtype")


def inspect(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(help="A model's folder or name on the Hub, or a trace of any format.", metavar="MODEL_OR_TRACE"),
    ],
    text: Annotated[list[Path] | None, option("Text file to run the model on; repeatable, each a domain.")] = None,
    corpus: Annotated[Path | None, option("Folder of texts, with a sub-folder a domain.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens at most, of all domains together.")] = 65_536,
    batch_size: Annotated[int, typer.Option(help="Windows of a batch.")] = 8,
    sequence_length: Annotated[int, typer.Option(help="Tokens of a window.")] = 512,
    device: Annotated[str, typer.Option(help="Where the model runs: cpu, cuda, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help=f"Of the weights: {', '.join(DTYPES)}.")] = "auto",
    top_k: Annotated[str | None, option("Also evaluate with these experts per token, such as 1,2,4.")] = None,
    compare: Annotated[str | None, option("Another trace or model, to compare with.")] = None,
    tokenizer: Annotated[str | None, option("Tokenizer that shows a trace's tokens as text, or 'bytes'.")] = None,
    layers: Annotated[str | None, option("How many layers to list, the worst first, or all.")] = None,
    save_to: Annotated[Path | None, option("Write the trace to this .safetensors file.", "--save")] = None,
    logits: Annotated[bool, option("Keep the logits in the file of --save.", "--logits")] = False,
    output: Annotated[Path | None, option("Write the page to this HTML file.", "--output", "-o")] = None,
    open_page: Annotated[bool, option("Open the page; it is report.html unless --output says.", "--open")] = False,
    threads: Annotated[int | None, option("Threads of PyTorch; default: all cores.")] = None,
    as_json: Annotated[bool, option("Print JSON and nothing else.", "--json")] = False,
) -> None:
    """Show what a model's router does with a text, or what a trace holds.

    A model is run on the texts, without them on a sample of several languages and of code. The table has a line a
    layer; the page of --output shows all of it. Nothing is written before the run is done.
    """
    use_threads(threads)
    reading = Reading(tuple(text or ()), corpus, tokens, batch_size, sequence_length, device, dtype)
    output = Path("report.html") if open_page and output is None else output
    layers_to_list(layers, 1)  # refuses what makes no sense before the model runs
    for check, path in ((check_output, save_to), (check_page, output)):
        if path is not None:
            check(path)
    given = [name for name in _OF_A_MODEL if _given(context, name)]
    console = Console(stderr=as_json, highlight=False)
    try:
        found = look_at(source, compare, reading, (top_k, tokenizer, given), console)
    except KeyboardInterrupt:
        console.print("Stopped; nothing was written.")
        raise typer.Exit(130) from None
    written = found.write(save_to, output, logits=logits)
    if as_json:
        typer.echo(json.dumps(found.to_dict(written), allow_nan=False))
    else:
        found.show(console, layers, written)
    if open_page and output is not None:
        webbrowser.open(output.resolve().as_uri())


def _given(context: typer.Context, name: str) -> bool:
    """Whether an option was on the command line."""
    return getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"


@dataclass(frozen=True, eq=False)
class Found:
    """What was looked at, ready to be shown: the name, the trace, the page's content and the sweep over K."""

    source: str
    trace: Trace | Loads
    page: Page

    def write(self, save_to: Path | None, output: Path | None, *, logits: bool) -> dict[str, str]:
        """Write the trace and the page, where asked for; what was written, by what it is.

        Raises:
            ValueError: counts can't be saved as a trace.
        """
        written = {}
        if save_to is not None:
            if isinstance(self.trace, Loads):
                raise ValueError(f"{self.source} has only counts; --save writes traces of tokens.")
            written["trace"] = str(save(self.trace if logits else replace(self.trace, logits=None), save_to))
        if output is not None:
            written["page"] = str(write_page(self.page, output))
        return written

    def show(self, console: Console, layers: str | None, written: dict[str, str]) -> None:
        """Print the table, the findings, the sweep, and where the files are."""
        num_layers = len(self.page.figures.table)
        name = Path(self.source).name if Path(self.source).exists() else self.source
        console.print(f"{name}: {_size(self.trace)}", style="bold", markup=False)
        print_layers(console, self.page.figures, layers_to_list(layers, num_layers))
        for sentence in self.page.findings:
            console.print(f"• {sentence}", markup=False)
        if self.page.top_k:
            console.print(_sweep_table(self.page.top_k))
        for what, path in written.items():
            console.print(f"Wrote the {what} to {path}", markup=False, soft_wrap=True)
        if not written:
            console.print("--output report.html writes the page that shows all of this.", style="dim")

    def to_dict(self, written: dict[str, str]) -> dict[str, Any]:
        """JSON values."""
        figures, comparison = self.page.figures, self.page.comparison
        nmi: Sequence[float | None] = figures.nmi or [None] * len(figures.table)
        difference = comparison.difference if comparison else None
        return {
            "source": self.source,
            "tokens": int(self.trace.token_mask.sum()) if isinstance(self.trace, Trace) else None,
            "top_k": self.trace.top_k if isinstance(self.trace, Trace) else None,
            "findings": self.page.findings,
            "layers": [row.to_dict() | {"nmi": value} for row, value in zip(figures.table, nmi, strict=True)],
            "totals": totals(figures.table),
            "at_top_k": list(self.page.top_k),
            "comparison": None if difference is None else difference.to_dict(),
            "files": written,
        }


def look_at(
    source: str,
    compare: str | None,
    reading: Reading,
    wanted: tuple[str | None, str | None, Sequence[str]],
    console: Console,
) -> Found:
    """Read the trace or run the model, and what it is compared with.

    Args:
        source: a file, a folder or a name on the Hub.
        compare: likewise; None for nothing.
        reading: what a model is run on.
        wanted: the values of K, the tokenizer, and which options of a model were given.
        console: where progress is shown.

    Raises:
        ValueError: there is no such trace or model, or options don't fit what it is.
    """
    top_k, tokenizer, given = wanted
    values = () if top_k is None else _values(top_k)
    _check_file(source)
    subject = None if Path(source).is_file() else load_subject(source, reading)
    if subject is None and given:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ValueError(f"{source} is a trace, and nothing is run; leave out {flags}.")
    if subject is not None and tokenizer is not None:
        raise ValueError("--tokenizer is for traces; a model has its own.")
    results = [row.to_dict() for row in sweep_subject(subject, values, console)] if subject and values else []
    trace = read(source) if subject is None else record_subject(subject, console)
    other = None if compare is None else _other(compare, reading, subject, console)
    page = prepare(
        trace, other, decode=_decode(subject, tokenizer), top_k=results,
        title=f"Routing of {Path(source).name}", names=_names(source, compare or ""),
    )  # fmt: skip
    return Found(source, trace, page)


def _check_file(name: str) -> None:
    """Refuse a file that is not there, so that no name of a file is looked up on the Hub."""
    if Path(name).suffix in _FILES and not Path(name).exists():
        raise FileNotFoundError(f"There is no file {name}.")


def _other(compare: str, reading: Reading, subject: Subject | None, console: Console) -> Trace | Loads:
    """The trace to compare with: of a file, or of another model on the same tokens."""
    _check_file(compare)
    if Path(compare).is_file():
        return read(compare)
    if subject is None:
        raise ValueError(f"--compare {compare} is no file: a trace is compared with another trace.")
    return record_subject(load_subject(compare, reading, subject), console)


def _names(source: str, compare: str) -> tuple[str, str]:
    names = (Path(source).name, Path(compare).name)
    return names if names[0] != names[1] else (source, compare)


def _values(top_k: str) -> tuple[int, ...]:
    from moegate.lab.sweep import parse_integers, parse_list

    return tuple(parse_integers("--top-k", parse_list(top_k)))


def _decode(subject: Subject | None, tokenizer: str | None) -> Decode | None:
    """The text of token ids, by the model's tokenizer or the one that is named."""
    if subject is None and tokenizer is None:
        return None
    from moegate.hf.loading import load_tokenizer
    from moegate.hf.token_texts import token_texts

    known = subject.tokenizer if subject is not None else load_tokenizer(str(tokenizer))
    return lambda token_ids: token_texts(known, token_ids)


def _size(trace: Trace | Loads) -> str:
    experts = " or ".join(map(str, sorted(set(trace.num_experts))))
    layers = f"{trace.num_layers} layers of {experts} experts"
    if isinstance(trace, Loads):
        return f"counts of {layers}"
    return f"{int(trace.token_mask.sum()):,} tokens, {layers}, K = {trace.top_k}"


def _sweep_table(rows: Sequence[Any]) -> Table:
    table = Table(title="Experts per token", box=None, title_justify="left", padding=(0, 2, 0, 0))
    for name in ("K", "bits/byte", "loss", "tokens/s"):
        table.add_column(name, justify="right")
    table.add_column("")
    for row in rows:
        quality = ["–" if row[name] is None else f"{row[name]:.4f}" for name in ("bits_per_byte", "loss")]
        table.add_row(
            str(row["top_k"]), *quality, f"{row['tokens_per_second']:,.0f}", "as trained" if row["trained"] else ""
        )
    return table
