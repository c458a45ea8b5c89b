"""The command line: `moegate VERB`. One file a verb, loaded when it is called."""

from typing import TYPE_CHECKING, Any

from moegate.cli.entry import main

if TYPE_CHECKING:
    from moegate.cli.shell import app

__all__ = ["app", "main"]


def __getattr__(name: str) -> Any:
    """The shell loads when it is first used: one verb does without what it needs."""
    if name == "app":
        from moegate.cli.shell import app

        return app
    raise AttributeError(f"module 'moegate.cli' has no attribute {name!r}")
