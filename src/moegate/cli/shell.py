"""The shell around the verbs: lists them, loads the one that is called, prints errors as sentences."""

import importlib
import keyword
import os
from importlib.metadata import version
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

VERBS = {
    "demo": "Train on real data, compare K = 1, 2, 4, 8, and open a page that shows what the router did.",
    "train": "Train one MoE model and write its run folder.",
    "sweep": "Compare routers, values of K and balancing methods over several seeds.",
    "report": "Write one self-contained HTML page about runs or sweeps.",
    "data": "Show the data: domains, sizes of the splits, sources, licences.",
    "inspect": "Show what a model's router does with a text, or what a trace holds.",
    "import": "Read the routing that another system wrote, show it, and keep it as a trace.",
    "diff": "Compare two traces of the same tokens: how far their experts agree, and where they part.",
    "place": "Place experts on devices by measured load, with replicas of the busiest.",
    "prune-scores": "Score a model's experts by what they add to the output, to see which can go.",
    "upcycle": "Turn a dense Llama, Mistral or Qwen model into a Mixture-of-Experts model.",
    "hf": "Say how the MoE architectures of transformers route, where their biases live, and what is special.",
    "ascend": "Say which Ascend operators a model's routing needs, who accepts them, and what to watch.",
    "bench": "Time moegate against its peers, after a check that all of them compute the same.",
    "doctor": "Show versions, hardware, and which implementation serves each operator.",
}
"""Verb -> its line in `moegate --help`. The verb itself is the function `VERB` in `moegate.cli.VERB`, as `python_name`
spells it."""


def python_name(verb: str) -> str:
    """The verb as the name of a module and a function.

    Example:
        >>> python_name("prune-scores"), python_name("import")
        ('prune_scores', 'import_')
    """
    name = verb.replace("-", "_")
    return f"{name}_" if keyword.iskeyword(name) else name


def load_verb(name: str) -> Any:
    """Import `moegate.cli.NAME` and make a command of its function `NAME`; its `EXAMPLES` end the help."""
    module = importlib.import_module(f"moegate.cli.{python_name(name)}")
    examples = getattr(module, "EXAMPLES", ())
    # Rich joins the lines of a paragraph, so each example is a paragraph.
    epilog = "\n\n".join(("Examples:", *examples)) if examples else None
    single = typer.Typer(add_completion=False)
    single.command(name, epilog=epilog)(getattr(module, python_name(name)))
    return typer.main.get_command(single)


def sentence(error: Exception) -> str:
    """Say what went wrong; for an error of the operating system the path, the reason, and what to do.

    Example:
        >>> sentence(PermissionError(13, "Permission denied", "/runs"))
        "Can't use /runs: permission denied. Choose another path, or make this one usable."
    """
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    reason = error.strerror[:1].lower() + error.strerror[1:]
    if isinstance(error, FileExistsError | NotADirectoryError):
        reason = "a file is where a folder is needed"
    what = "read or write a file" if error.filename is None else f"use {error.filename}"
    return f"Can't {what}: {reason}. Choose another path, or make this one usable."


class Verbs(TyperGroup):
    """The group of all verbs, which knows only their help lines until one is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the verb that is called, and load it."""
        name, _, rest = super().resolve_command(ctx, args)
        return name, load_verb(str(name)), rest

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; what the user got wrong is printed as a sentence, without a traceback."""
        try:
            return super().invoke(ctx)
        except (ValueError, TypeError, OSError, ImportError) as error:
            # A reader that left, such as `head`, is no mistake: click ends the program quietly.
            if os.environ.get("MOEGATE_TRACEBACK") or isinstance(error, BrokenPipeError):
                raise
            console = Console(stderr=True, highlight=False, soft_wrap=True)
            console.print(f"[bold red]Error:[/] {escape(sentence(error))}")
            console.print("Set MOEGATE_TRACEBACK=1 to see where it was raised.", style="dim")
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    help="moegate: the routing layer for Mixture-of-Experts models.",
    pretty_exceptions_show_locals=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"moegate {version('moegate')}")
        raise typer.Exit


@app.callback()
def moegate(
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """The routing layer for Mixture-of-Experts models."""


def _listed() -> None:
    """Stands for a verb in the list of verbs; a call loads the verb itself."""


for _verb, _line in VERBS.items():
    app.command(_verb, help=_line)(_listed)


def main() -> None:
    """Run the command line."""
    app()
