"""Dynamic k: the router spends more experts on tokens that it is unsure about."""

import torch

import moegate
from moegate import metrics

NUM_TOKENS, NUM_EXPERTS, MAX_K = 300, 8, 4

RULES = {
    "entropy_k, 0.6 and 1.2 nats": moegate.recipes.entropy_k(threshold=0.6, max_k=MAX_K),
    "a ladder of four steps": moegate.RoutingRule(
        selection=moegate.selection.EntropyK(thresholds=(0.3, 0.8, 1.3), counts=(1, 2, 3, MAX_K))
    ),
    "top_p 0.7": moegate.recipes.top_p(0.7, max_k=MAX_K),
    "threshold 0.2": moegate.RoutingRule(moegate.selection.Threshold(0.2, min_k=1, max_k=MAX_K)),
}


def main(device: torch.device | None = None) -> None:
    """Route tokens of three degrees of certainty and print the experts that each degree gets."""
    torch.manual_seed(0)
    sharpness = torch.tensor([6.0, 2.0, 0.5], device=device).repeat_interleave(NUM_TOKENS // 3)
    logits = torch.randn(NUM_TOKENS, NUM_EXPERTS, device=device) * sharpness[:, None]

    print(f"{'rule':<30}{'certain':>9}{'unsure':>9}{'lost':>9}{'all':>9}")
    for name, rule in RULES.items():
        routing = moegate.route(logits, rule)
        counts = (routing.expert_index >= 0).sum(dim=-1).float().view(3, -1).mean(dim=1).tolist()
        shown = "".join(f"{count:>9.2f}" for count in counts)
        print(f"{name:<30}{shown}{metrics.experts_per_token(routing):>9.2f}")

    # k is a part of the rule, and the rule of a layer may be set anew: fewer experts where time is short.
    moe = moegate.MoE(16, 32, NUM_EXPERTS, moegate.recipes.mixtral(top_k=4)).to(device=device).eval()
    hidden = torch.randn(64, 16, device=device)
    for top_k in (4, 2):
        moe.rule = moegate.recipes.mixtral(top_k=top_k)
        _, routing = moe(hidden)
        print(f"the same layer with {moe.rule}: {routing.load.sum().item()} assignments")


if __name__ == "__main__":
    main()
