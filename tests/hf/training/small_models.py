"""Small random models of three kinds of router, and an oracle of their own hooks for what they route."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

VOCABULARY, LAYERS, EXPERTS, TOP_K = 32, 2, 8, 2
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 32,
    "moe_intermediate_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": TOP_K,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": False,
}


def qwen(**changes: Any) -> Qwen3MoeForCausalLM:
    """A softmax router with a pooled loss of its own."""
    torch.manual_seed(7)
    settings = _COMMON | {"num_experts": EXPERTS, "head_dim": 16, "initializer_range": 0.3} | changes
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**settings)).train()


def deepseek(**changes: Any) -> DeepseekV3ForCausalLM:
    """A sigmoid router with a selection bias and groups."""
    torch.manual_seed(7)
    settings = _COMMON | {
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 1,
        "n_group": 2,
        "topk_group": 2,
        "first_k_dense_replace": 0,
        "q_lora_rank": None,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
        "initializer_range": 0.3,
    }
    return DeepseekV3ForCausalLM(DeepseekV3Config(**(settings | changes))).train()


def batch(rows: int = 4, length: int = 12, *, seed: int = 0, padded: bool = True) -> dict[str, Tensor]:
    """Token ids with labels; with ``padded``, rows of different lengths, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(rows if padded else 0):
        mask[row, length - 2 * row % (length - 2) :] = 0
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


class Oracle:
    """What the experts received and the gates' logits, by plain hooks on the modules' own names."""

    def __init__(self, model: nn.Module) -> None:
        self.blocks = [module for module in model.modules() if hasattr(module, "gate") and hasattr(module, "experts")]
        self.logits: list[list[Tensor]] = [[] for _ in self.blocks]
        self.received: list[list[Tensor]] = [[] for _ in self.blocks]
        for number, block in enumerate(self.blocks):
            block.gate.register_forward_hook(lambda _, __, output, number=number: self.logits[number].append(output[0]))
            block.experts.register_forward_pre_hook(
                lambda _, args, number=number: self.received[number].append(args[1])
            )

    def load(self, number: int, masks: list[Tensor]) -> list[int]:
        """Assignments of each expert over the calls, real tokens only; one mask a call."""
        counts = [0] * EXPERTS
        for index_TK, mask in zip(self.received[number], masks, strict=True):
            for row, real in zip(index_TK.tolist(), mask.reshape(-1).tolist(), strict=True):
                for expert in row if real else ():
                    counts[expert] += 1
        return counts

    def balance(self, call: int, mask: Tensor, *, sigmoid: bool = False) -> Tensor:
        """The sum over layers of ``E Σ f P`` of one call, with its graph."""
        total = torch.zeros(())
        real = mask.reshape(-1).bool()
        for number in range(len(self.blocks)):
            logits_TE = self.logits[number][call].float()[real]
            scores_TE = logits_TE.sigmoid() if sigmoid else logits_TE.softmax(-1)
            mean_E = (scores_TE / scores_TE.sum(-1, keepdim=True)).mean(0)
            share_E = torch.bincount(self.received[number][call][real].reshape(-1), minlength=EXPERTS).float()
            total = total + EXPERTS * (share_E / share_E.sum() * mean_E).sum()
        return total


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Clones of all gradients, by name."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-4, atol: float = 1e-7) -> None:
    """The same names and, up to rounding, the same values."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )
