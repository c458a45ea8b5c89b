"""Calls the gate of the ablation, for a counter of instructions: ``python -m moegate.bench.ablation_driver CALLS``.

``CALLS`` is a JSON list of calls, each the fields of ``Call`` by name. One thread; the logits come from a fixed seed.
"""

import json
import sys
from dataclasses import dataclass

import torch

from moegate.ops.topk_gate.ablation import ablated_topk_gate


@dataclass(frozen=True)
class Call:
    """One way through the gate, at one size, so many times."""

    num_tokens: int
    num_experts: int
    top_k: int
    switched_off: str = "none"
    prefetch: bool = False
    repeats: int = 1

    def run(self) -> None:
        """Makes the calls."""
        generator = torch.Generator().manual_seed(self.num_experts)
        logits_TE = torch.randn(self.num_tokens, self.num_experts, generator=generator)
        bias_E = 0.1 * torch.randn(self.num_experts, generator=generator)
        for _ in range(self.repeats):
            ablated_topk_gate(
                logits_TE, bias_E, top_k=self.top_k, switched_off=self.switched_off, prefetch=self.prefetch
            )


def main(listed: str) -> None:
    """Makes all calls of a JSON list, in its order."""
    torch.set_num_threads(1)
    for fields in json.loads(listed):
        Call(**fields).run()


if __name__ == "__main__":
    main(sys.argv[1])
