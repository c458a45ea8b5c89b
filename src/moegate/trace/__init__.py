"""Routing traces: who went where, token by token and layer by layer, kept in a file."""

from moegate.trace.trace import Trace

__all__ = ["Trace"]
