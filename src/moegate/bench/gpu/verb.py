"""``moegate bench --device``: what both command lines do with it."""

from functools import partial
from pathlib import Path

from moegate.bench.gpu.card import why_no_card
from moegate.bench.gpu.sitting import Plan, Sitting, chosen_suites, wanted_suites
from moegate.bench.machine import checkout

DEVICES = ("cuda", "rehearsal")
NO_CARD = 3


def bench_on_device(suite: str, device: str, *, seconds: float, only: str, output: Path | None) -> int:
    """A sitting of one suite or of all; the exit status.

    0: everything was right. 1: something of moegate is wrong or failed. 3: there is no card. 130: interrupted.

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
    reason = why_no_card() if device == "cuda" else None
    if reason is not None:
        say(f"{reason} Nothing was measured. --device rehearsal runs the same steps on the CPU, without times.")
        return NO_CARD
    clone = checkout()
    # A rehearsal must not lie beside what was measured.
    measured = clone / "benchmarks" / "results" if clone and device == "cuda" else Path("moegate-bench")
    return Sitting(Plan(suites, device, seconds, texts), output or measured, say).run()
