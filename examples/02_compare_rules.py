"""The same logits under many rules: experts per token, evenness of the load, and what is dropped."""

import torch

import moegate
from moegate import metrics, recipes

NUM_TOKENS, NUM_EXPERTS = 512, 8

RULES = {
    "switch": recipes.switch(),
    "mixtral": recipes.mixtral(),
    "gpt_oss, top-4": recipes.gpt_oss(top_k=4),
    "deepseek_v3, 2 of 4 groups": recipes.deepseek_v3(top_k=2, num_groups=4, groups_kept=2),
    "gshard, capacity 1.25": recipes.gshard(),
    "top_p 0.6": recipes.top_p(0.6),
    "entropy_k": recipes.entropy_k(threshold=0.9, max_k=4),
    "relu": recipes.relu(),
    "expert_choice": recipes.expert_choice(capacity_factor=2.0),
    "hash_routing": recipes.hash_routing(top_k=2),
    "random_routing": recipes.random_routing(top_k=2),
    "dense": recipes.dense(),
}


def main(device: torch.device | None = None) -> None:
    """Route logits that favour the first experts by each rule, and print a line each."""
    torch.manual_seed(0)
    tilt = torch.linspace(1.0, -1.0, NUM_EXPERTS, device=device)
    logits = torch.randn(NUM_TOKENS, NUM_EXPERTS, device=device) + tilt
    token_ids = torch.randint(0, 1000, (NUM_TOKENS,), device=device)

    print(f"{'rule':<28}{'experts/token':>14}{'MaxVio':>8}{'dropped':>9}   load")
    for name, rule in RULES.items():
        routing = moegate.route(logits, rule, token_ids=token_ids, training=True, generator=0)
        print(
            f"{name:<28}{metrics.experts_per_token(routing):>14.2f}{metrics.max_violation(routing):>8.2f}"
            f"{metrics.drop_rate(routing):>9.1%}   {routing.load.tolist()}"
        )


if __name__ == "__main__":
    main()
