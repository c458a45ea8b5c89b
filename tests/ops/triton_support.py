"""How tests are run on the Triton kernels: the whole process, by ``make test-triton``.

With ``MOEGATE_KERNEL=triton TRITON_INTERPRET=1`` the operators take CPU tensors to their Triton kernels, which Triton's
interpreter runs; a test that calls an operator then tests its kernel, and needs to know nothing of it. A test that
is about one side alone says so here, and why.
"""

import pytest

from moegate.ops.server import SERVER, Server

ON_TRITON = SERVER is Server.INTERPRETER

only_on_triton = pytest.mark.skipif(not ON_TRITON, reason="tests the Triton kernels: make test-triton runs it")


def not_on_triton(reason: str) -> pytest.MarkDecorator:
    """Marks a test, or a case of one (``pytest.param(..., marks=...)``), that says nothing about Triton kernels.

    The reason may be that the interpreter, which is thousands of times slower than a processor, needs minutes for it:
    then a smaller case has to be there too.
    """
    return pytest.mark.skipif(ON_TRITON, reason=f"not on Triton: {reason}")


may_race = pytest.mark.may_race
"""Marks a test whose arguments are nonsense, such as offsets that fall: programs may then write to one place."""


def examples(number: int) -> int:
    """How many examples hypothesis draws where it would draw ``number``: in the interpreter a twentieth, at least 3."""
    return max(3, number // 20) if ON_TRITON else number
