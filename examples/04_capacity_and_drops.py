"""Capacity: how many tokens an expert takes, who is turned away, and where they go instead."""

import torch

import moegate
from moegate import metrics

NUM_TOKENS, NUM_EXPERTS = 256, 8


def show(name: str, routing: moegate.Routing) -> None:
    """One line: what was chosen and what is left of it."""
    print(
        f"{name:<26}dropped {metrics.drop_rate(routing):>6.1%}, no expert at all "
        f"{metrics.fully_dropped_rate(routing):>6.1%}, load {routing.load.tolist()}"
    )


def main(device: torch.device | None = None) -> None:
    """Tighten the capacity, then change who keeps a place, then reroute."""
    torch.manual_seed(0)
    tilt = torch.linspace(1.5, -1.5, NUM_EXPERTS, device=device)
    logits = torch.randn(NUM_TOKENS, NUM_EXPERTS, device=device) + tilt
    rule = moegate.recipes.mixtral(top_k=2)

    print("The formula: ceil(tokens × top_k / experts × factor)")
    for factor in (1.0, 1.25, 2.0):
        print(f"  factor {factor}: {moegate.capacity(NUM_TOKENS, NUM_EXPERTS, factor, top_k=2)} assignments an expert")

    show("no capacity", moegate.route(logits, rule))
    for factor in (2.0, 1.25, 1.0):
        limited = rule.replace(capacity=moegate.Capacity(factor))
        show(f"factor {factor}", moegate.route(logits, limited))

    print("Who keeps a place at factor 1.0: the weight that is carried out, of all that was chosen")
    total = moegate.route(logits, rule).weights.sum()
    for drop in ("position", "weight", "random", "batch_priority"):
        limited = rule.replace(capacity=moegate.Capacity(1.0, drop=drop))
        kept = moegate.route(logits, limited, training=True, generator=0).weights.sum() / total
        print(f"  {drop:<16}{kept.item():.1%}")

    rerouted = rule.replace(capacity=moegate.Capacity(1.0, overflow="reroute"))
    show("factor 1.0, rerouted", moegate.route(logits, rerouted))


if __name__ == "__main__":
    main()
