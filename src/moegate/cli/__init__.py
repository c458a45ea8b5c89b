"""The command line: `moegate VERB`. One file a verb, loaded when it is called."""

from moegate.cli.shell import app, main

__all__ = ["app", "main"]
