"""Across layers: a gate that sees what the layer before decided, and layers that share their experts."""

import torch
from torch import Tensor, nn

import moegate

HIDDEN, EXPERTS, LAYERS, TOKENS, STEPS = 16, 8, 3, 128, 60


class Stack(nn.Module):
    """MoE layers with residual connections; each gate reads the logits of the one before."""

    def __init__(self, share_experts: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            moegate.MoE(
                HIDDEN, 32, EXPERTS, moegate.recipes.mixtral(), gate=moegate.gates.ResidualGate(HIDDEN, EXPERTS)
            )
            for _ in range(LAYERS)
        )
        if share_experts:
            for layer in self.layers[1:]:
                layer.experts = self.layers[0].experts

    def forward(self, hidden: Tensor) -> tuple[Tensor, list[moegate.Routing]]:
        """The last hidden states, and the routing of every layer."""
        routings: list[moegate.Routing] = []
        for layer in self.layers:
            out, routing = layer(hidden, previous=routings[-1] if routings else None)
            hidden = hidden + out
            routings.append(routing)
        return hidden, routings


def main(device: torch.device | None = None) -> None:
    """Train both stacks for a moment; print their size and how much each gate leans on the layer before."""
    for share_experts in (False, True):
        torch.manual_seed(0)
        stack = Stack(share_experts).to(device=device)
        hidden = torch.randn(TOKENS, HIDDEN, device=device)
        target = hidden.roll(1, dims=-1).relu()
        optimizer = torch.optim.AdamW(stack.parameters(), lr=3e-3)
        losses = []
        for _ in range(STEPS):
            out, routings = stack(hidden)
            balance = torch.stack([moegate.balance.losses.load_balance(routing) for routing in routings]).sum()
            losses.append(nn.functional.mse_loss(out, target))
            optimizer.zero_grad()
            (losses[-1] + 0.01 * balance).backward()
            optimizer.step()
        parameters = sum(parameter.numel() for parameter in stack.parameters())
        lean = [f"{layer.gate.previous_weight.norm().item():.2f}" for layer in stack.layers]
        print(f"experts {'shared' if share_experts else 'of their own'}: {parameters:,} parameters")
        print(f"  error {losses[0].item():.3f} -> {losses[-1].item():.3f}")
        print(f"  norm of W_previous by layer {lean} (all start at 0; the first layer has nothing before it)")


if __name__ == "__main__":
    main()
