"""Compiles a layer whose tensors lie on a GPU that is not here, and prints what its graph calls; run by a test.

In a process of its own: a CPU build of PyTorch is made to bear fake "cuda" tensors, which nothing can take back.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

from kernel_launches import allow_fake_cuda

import moegate

RECIPES = {
    "mixtral": moegate.recipes.mixtral(),
    "deepseek_v3": moegate.recipes.deepseek_v3(4, num_groups=4, groups_kept=2),
}


def compiled(rule: moegate.RoutingRule, training: bool) -> dict[str, Any]:
    """The operators that one graph of the layer calls, and where its results lie."""
    called: list[str] = []

    def backend(module: Any, inputs: Any) -> Any:
        called.extend(str(node.target) for node in module.graph.nodes if str(node.target).startswith("moegate."))
        return module.forward

    torch.compiler.reset()
    with FakeTensorMode(), torch.device("cuda"):
        layer = moegate.MoE(64, 32, 16, rule, correction_bias=True)
        layer.train(training).requires_grad_(training)
        hidden = torch.empty(24, 64)
        with torch.set_grad_enabled(training):
            out, routing = torch.compile(layer, backend=backend, fullgraph=True)(hidden)
    devices = {str(tensor.device) for tensor in (out, routing.expert_index, routing.weights)}
    return {"called": called, "devices": sorted(devices)}


if __name__ == "__main__":
    allow_fake_cuda()
    modes = {"inference": False, "training": True}
    print(json.dumps({f"{name}, {mode}": compiled(RECIPES[name], modes[mode]) for name in RECIPES for mode in modes}))
