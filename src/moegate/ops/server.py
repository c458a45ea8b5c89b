"""What serves the operators, as ``MOEGATE_KERNEL`` and what is installed say; read once, at import."""

import importlib.util
import os
from collections.abc import Mapping
from enum import Enum


class Server(Enum):
    """What serves the operators, by the values of ``MOEGATE_KERNEL``."""

    KERNELS = "1"
    """The default: C++ kernels for CPU tensors, Triton kernels for those of a GPU, references for what is left."""
    REFERENCES = "0"
    """The references alone, on every device."""
    INTERPRETER = "triton"
    """For tests: Triton kernels for CPU tensors too, run by Triton's interpreter."""


def chosen(environment: Mapping[str, str], has_triton: bool) -> Server:
    """The server that an environment asks for.

    Raises:
        ImportError: for a value of ``MOEGATE_KERNEL`` that is none, or if Triton's interpreter is not at hand.

    Example:
        >>> chosen({"MOEGATE_KERNEL": "0"}, has_triton=False)
        <Server.REFERENCES: '0'>
    """
    value = environment.get("MOEGATE_KERNEL") or Server.KERNELS.value
    if value not in {server.value for server in Server}:
        raise ImportError(
            f"MOEGATE_KERNEL={value} is unknown: use 1 for the kernels (the default), 0 for the references, or triton "
            "for the Triton kernels in Triton's interpreter."
        )
    if value == Server.INTERPRETER.value and not has_triton:
        raise ImportError("MOEGATE_KERNEL=triton needs Triton, which is not installed here: pip install triton.")
    if value == Server.INTERPRETER.value and environment.get("TRITON_INTERPRET") != "1":
        raise ImportError("MOEGATE_KERNEL=triton runs kernels in Triton's interpreter: set TRITON_INTERPRET=1 too.")
    return Server(value)


HAS_TRITON = importlib.util.find_spec("triton") is not None
SERVER = chosen(os.environ, HAS_TRITON)
STRICT = os.environ.get("MOEGATE_STRICT") == "1"
"""Whether it is an error where a reference serves for want of a kernel."""
