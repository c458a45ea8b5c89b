"""Route a few tokens and read the result: who goes where, with what weight, and what the router saw."""

import torch

import moegate


def main(device: torch.device | None = None) -> None:
    """Route two sequences of three tokens among four experts, the last token being padding."""
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, device=device)
    token_mask = torch.ones(2, 3, dtype=torch.bool, device=device)
    token_mask[1, 2] = False

    rule = moegate.RoutingRule(
        selection=moegate.selection.TopK(2),
        score=moegate.scoring.Softmax(),
        weighting=moegate.Weighting(renormalize=True),
    )
    assert rule == moegate.recipes.mixtral(top_k=2)
    print(rule)

    routing = moegate.route(logits, rule, token_mask=token_mask)
    print(f"{routing.num_tokens} tokens of the shape {routing.batch_shape}, {routing.num_experts} experts")
    for token, (experts, weights) in enumerate(zip(routing.expert_index, routing.weights, strict=True)):
        shown = [f"expert {e} × {w:.2f}" for e, w in zip(experts.tolist(), weights.tolist(), strict=True) if e >= 0]
        print(f"  token {token}: {', '.join(shown) or 'masked'}")

    print(f"load {routing.load.tolist()} of {routing.real_tokens.item()} real tokens")
    edges = routing.edges()
    print(f"as edges: {list(zip(edges.token.tolist(), edges.expert.tolist(), strict=True))}")

    # A selection bias moves the choice and leaves the weights alone: both experts keep their own scores.
    bias = torch.tensor([0.0, 0.0, 0.0, 1.0], device=device)
    biased = moegate.route(logits, rule, bias=bias, token_mask=token_mask)
    print(f"load {biased.load.tolist()} once expert 3 has a bias of 1")


if __name__ == "__main__":
    main()
