"""Routing traces: who went where, token by token and layer by layer, kept in a file."""

from moegate.trace.file import load, save
from moegate.trace.loads import Loads, save_loads
from moegate.trace.reading import read
from moegate.trace.trace import PHASES, Trace

__all__ = ["PHASES", "Loads", "Trace", "load", "read", "save", "save_loads"]
