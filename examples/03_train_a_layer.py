"""Train one layer three times: without balance, with a balance loss, and with a bias controller.

The data has eight kinds of tokens, some common and some rare, and the layer has eight experts.
"""

import torch
from torch import Tensor, nn

import moegate
from moegate.balance.controllers import SignBias
from moegate.balance.losses import load_balance

HIDDEN, EXPERTS, KINDS, TOKENS, STEPS, LAST = 16, 8, 8, 256, 120, 20
LOSS_COEFFICIENT = 0.1
BIAS_RATE = 0.005  # scores lie in [0, 1], so this crosses them in 200 steps

RULE = moegate.RoutingRule(
    selection=moegate.selection.TopK(2),
    score=moegate.scoring.Sigmoid(),
    weighting=moegate.Weighting(renormalize=True),
)


class Task:
    """Tokens scattered around one centre per kind; the target is a linear map that differs by kind."""

    def __init__(self, device: torch.device | None) -> None:
        self.centre = 2.0 * torch.randn(KINDS, HIDDEN, device=device)
        self.map = torch.randn(KINDS, HIDDEN, HIDDEN, device=device) / HIDDEN**0.5
        self.share = torch.linspace(4.0, 1.0, KINDS, device=device)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets ``[T, D]``."""
        kind = torch.multinomial(self.share, TOKENS, replacement=True)
        noise = torch.randn(TOKENS, HIDDEN, device=self.centre.device)
        target = torch.einsum("tij,tj->ti", self.map[kind], noise)
        return self.centre[kind] + noise, target


def train(task: Task, method: str, device: torch.device | None) -> tuple[float, float, Tensor]:
    """Over the last steps: mean error, mean MaxVio, and the summed load of the experts."""
    torch.manual_seed(1)
    moe = moegate.MoE(HIDDEN, 32, EXPERTS, RULE, correction_bias=method == "bias").to(device=device)
    controller = SignBias(EXPERTS, rate=BIAS_RATE).to(device=device)
    optimizer = torch.optim.AdamW(moe.parameters(), lr=1e-2)
    errors, violations, loads = [], [], []
    for _ in range(STEPS):
        hidden, target = task.batch()
        out, routing = moe(hidden)
        error = nn.functional.mse_loss(out, target)
        penalty = LOSS_COEFFICIENT * load_balance(routing) if method == "loss" else 0.0
        optimizer.zero_grad()
        (error + penalty).backward()
        optimizer.step()
        if moe.gate.e_score_correction_bias is not None:
            controller.observe(routing)
            controller.update(moe.gate.e_score_correction_bias)
        errors.append(error.item())
        violations.append(moegate.metrics.max_violation(routing))
        loads.append(routing.load)
    return sum(errors[-LAST:]) / LAST, sum(violations[-LAST:]) / LAST, torch.stack(loads[-LAST:]).sum(dim=0)


def main(device: torch.device | None = None) -> None:
    """Train with each method on the same task and print error and balance."""
    torch.manual_seed(0)
    task = Task(device)
    print(f"{'balance':<8}{'error':>8}{'MaxVio':>8}   load of the last {LAST} steps")
    for method in ("none", "loss", "bias"):
        error, violation, load = train(task, method, device)
        print(f"{method:<8}{error:>8.3f}{violation:>8.2f}   {load.tolist()}")


if __name__ == "__main__":
    main()
