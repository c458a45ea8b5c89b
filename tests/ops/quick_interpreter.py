"""Saves Triton's interpreter half of its time.

Whenever a kernel calls another function, the interpreter replaces all of Triton's language by its own once more, which
takes longer than most of what is called. Once for each launch is enough.
"""

from types import ModuleType
from typing import Any

import pytest


class Patched:
    """What stands for the language in a launch, and which parts of it."""

    def __init__(self, patch_lang: Any) -> None:
        self._patch_lang = patch_lang
        self._parts: set[ModuleType] | None = None

    def launch(self, call: Any) -> Any:
        """The interpreter's launch, in which nothing is replaced twice."""

        def launched(executor: Any, *arguments: Any, **options: Any) -> Any:
            before, self._parts = self._parts, set()
            try:
                return call(executor, *arguments, **options)
            finally:
                self._parts = before

        return launched

    def __call__(self, function: Any) -> Any:
        from triton import language

        parts = {value for value in function.__globals__.values() if value is language or value is language.core}
        if self._parts is None or parts - self._parts:
            scope = self._patch_lang(function)
            self._parts = None if self._parts is None else self._parts | parts
            return scope
        return None


def install(patch: pytest.MonkeyPatch) -> None:
    """Until the patch is undone."""
    from triton.runtime import interpreter

    patched = Patched(interpreter._patch_lang)
    patch.setattr(interpreter, "_patch_lang", patched)
    patch.setattr(interpreter.GridExecutor, "__call__", patched.launch(interpreter.GridExecutor.__call__))
