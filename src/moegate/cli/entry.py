"""Where the command line begins: the shell with all verbs, or without its packages the one verb that needs none."""

import importlib.util
import sys

_OF_THE_SHELL = ("typer", "rich")


def main() -> None:
    """Run the command line."""
    missing = [name for name in _OF_THE_SHELL if not _is_here(name)]
    if missing:
        from moegate.cli.plain import main as plain

        sys.exit(plain(sys.argv[1:], missing))
    from moegate.cli.shell import main as shell

    shell()


def _is_here(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
