"""``moegate bench --device``: what both command lines do with it."""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from moegate.bench.gpu.card import why_no_card
from moegate.bench.gpu.sitting import Plan, Sitting, chosen_suites, wanted_suites
from moegate.bench.machine import checkout
from moegate.ops.server import HAS_TRITON

DEVICES = ("cuda", "rehearsal")
NO_CARD = 3


def bench_on_device(suite: str, device: str, *, seconds: float, only: str, output: Path | None) -> int:
    """A sitting of one suite or of all; the exit status.

    0: everything was right. 1: something of moegate is wrong or failed. 3: there is no card, or nothing for it.
    130: interrupted.

    Raises:
        ValueError: there is no such suite or device, or no time.
    """
    if device not in DEVICES:
        raise ValueError(f"There is no device {device!r}: choose cuda, or rehearsal for the same steps on the CPU.")
    if not seconds > 0:
        raise ValueError(f"--seconds must be above 0, got {seconds:g}.")
    suites = tuple(chosen_suites(suite))
    texts = tuple(text for text in only.split(",") if text.strip())
    if not wanted_suites(suites, texts):
        raise ValueError(f"No case has {' or '.join(map(repr, texts))} in its name, such as 'gate softmax T=8192'.")
    say = partial(print, flush=True)
    # A rehearsal sets the variables of its processes itself.
    reason = why_no_kernels(os.environ if device == "cuda" else {}, HAS_TRITON)
    if reason is None and device == "cuda":
        reason = why_no_card()
    if reason is not None:
        rehearsal = " --device rehearsal runs the same steps on the CPU, without times." if HAS_TRITON else ""
        say(f"{reason} Nothing was measured.{rehearsal}")
        return NO_CARD
    clone = checkout()
    # A rehearsal must not lie beside what was measured.
    measured = clone / "benchmarks" / "results" if clone and device == "cuda" else Path("moegate-bench")
    return Sitting(Plan(suites, device, seconds, texts), output or measured, say).run()


def why_no_kernels(environment: Mapping[str, str], has_triton: bool) -> str | None:
    """Why what would be timed is not moegate's kernels on a card, in a sentence; None where it is.

    Example:
        >>> why_no_kernels({"MOEGATE_KERNEL": "0"}, has_triton=True)
        'MOEGATE_KERNEL=0 takes the kernels away that are to be measured: unset it.'
    """
    if not has_triton:
        return "Triton is not installed, and without it there are no kernels to measure: pip install triton."
    for name, harmless in (("MOEGATE_KERNEL", {"", "1"}), ("TRITON_INTERPRET", {"", "0"})):
        value = environment.get(name, "")
        if value not in harmless:
            return f"{name}={value} takes the kernels away that are to be measured: unset it."
    return None
