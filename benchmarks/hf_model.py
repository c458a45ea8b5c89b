"""Tokens a second of a small Qwen3-MoE on a CPU, by the experts implementations of transformers and by moegate's.

    python benchmarks/hf_model.py [--train]

First all implementations must give the same logits; then they are timed in turn, on one thread, in one process. Prints
a table of the ratios of the best times: how many times faster "moegate" is than each.
"""

import sys
import time

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

import moegate.hf  # registers the implementation  # noqa: F401

IMPLEMENTATIONS = ("eager", "grouped_mm", "batched_mm", "moegate")
SECONDS = 7.0  # for each row of the table
# Copying the weights of an expert for each of its rows would take most of the time.
TOO_MANY_FOR_COPIES = 32


def small_model(dtype: torch.dtype) -> Qwen3MoeForCausalLM:
    """Two layers of 32 experts, 8 of them a token."""
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        hidden_size=512, num_hidden_layers=2, vocab_size=1000, num_attention_heads=8, num_key_value_heads=2,
        head_dim=64, num_experts=32, num_experts_per_tok=8, moe_intermediate_size=256,
    )  # fmt: skip
    return Qwen3MoeForCausalLM(config).to(dtype).eval()


def seconds_of(model: Qwen3MoeForCausalLM, tokens: torch.Tensor, train: bool) -> float:
    start = time.perf_counter()
    if train:
        model(tokens, labels=tokens).loss.backward()
    else:
        model(tokens)
    return time.perf_counter() - start


def check_same(model: Qwen3MoeForCausalLM, tokens: torch.Tensor) -> None:
    found = {}
    with torch.no_grad():
        for name in IMPLEMENTATIONS:
            model.set_experts_implementation(name)
            found[name] = model(tokens).logits.float()
    allowed = 20 * torch.finfo(model.dtype).eps * found["eager"].abs().max()
    for name, logits in found.items():
        assert (logits - found["eager"]).abs().max() <= allowed, f"{name} does not compute what eager does"


def best_times(model: Qwen3MoeForCausalLM, tokens: torch.Tensor, train: bool) -> dict[str, float]:
    names = [name for name in IMPLEMENTATIONS if name != "batched_mm" or tokens.numel() < TOO_MANY_FOR_COPIES]
    best = dict.fromkeys(names, float("inf"))
    end = time.monotonic() + SECONDS
    rounds = 0
    while rounds < 2 or time.monotonic() < end:
        for name in names if rounds % 2 == 0 else reversed(names):
            model.set_experts_implementation(name)
            best[name] = min(best[name], seconds_of(model, tokens, train), seconds_of(model, tokens, train))
        rounds += 1
    return best


def main(train: bool) -> None:
    torch.set_num_threads(1)
    print("| type | tokens | " + " | ".join(IMPLEMENTATIONS[:-1]) + " | moegate, tokens/s |\n|" + " --- |" * 6)
    for dtype in (torch.float32, torch.bfloat16):
        model = small_model(dtype)
        check_same(model, torch.randint(0, 1000, (1, 16)))
        for number in (1, 32, 512):
            tokens = torch.randint(0, 1000, (1, number))
            with torch.set_grad_enabled(train):
                best = best_times(model, tokens, train)
            ours = best["moegate"]
            ratios = [f"{best[name] / ours:.2f}x" if name in best else "-" for name in IMPLEMENTATIONS[:-1]]
            print(f"| {str(dtype)[6:]} | {number} | {' | '.join(ratios)} | {number / ours:,.0f} |", flush=True)


if __name__ == "__main__":
    main("--train" in sys.argv[1:])
