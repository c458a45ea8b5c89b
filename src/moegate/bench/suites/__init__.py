"""What is measured: one module a suite, loaded when it is run."""

import importlib

from moegate.bench.suites.suite import Suite

SUITES = {
    "gate": "logits to experts and weights: forward, backward, one call, growth in T and E",
    "plan": "indices to sorted rows and back: plan, permute, combine",
    "layer": "a layer of SwiGLU experts: forward, experts alone, forward + backward",
    "topk": "the ways to find the k greatest, over N and k: time, memory, crossover points",
    "ablation": "the gate with each of its optimisations switched off alone: time, instructions",
}
"""Suite -> what it measures; the suite itself is ``SUITE`` in the module of that name."""


def load_suite(name: str) -> Suite:
    """A suite by its name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in SUITES:
        raise ValueError(f"There is no benchmark {name!r}: choose one of {', '.join(SUITES)}, or all.")
    suite: Suite = importlib.import_module(f"moegate.bench.suites.{name}").SUITE
    return suite
