"""A tiny byte-level Qwen3-MoE, trained for some seconds and saved as transformers saves a model."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

TOP_K = 2
NUM_EXPERTS = 8
TEXTS = {
    "english": "The router sends each token to the experts that know it best; the others wait for theirs. " * 40,
    "python": "def route(logits, top_k):\n    return logits.topk(top_k, dim=-1).indices\n\n\n" * 40,
}


def train_and_save(folder: Path, steps: int = 40) -> Path:
    """Trains the model on two kinds of text, and saves it without a tokenizer; returns the folder."""
    config = Qwen3MoeConfig(
        vocab_size=256,
        hidden_size=32,
        moe_intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=NUM_EXPERTS,
        num_experts_per_tok=TOP_K,
        norm_topk_prob=True,
        max_position_embeddings=128,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen3MoeForCausalLM(config).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for step in range(steps):
            batch_BS = _batch(step)
            optimizer.zero_grad()
            model(input_ids=batch_BS, labels=batch_BS).loss.backward()
            optimizer.step()
    model.eval().save_pretrained(folder)
    return folder


def _batch(step: int) -> Tensor:
    starts = [37 * step % 2000, 53 * step % 2000]
    rows = [list(text.encode()[start : start + 48]) for start, text in zip(starts, TEXTS.values(), strict=True)]
    return torch.tensor(rows)


def write_corpus(folder: Path) -> Path:
    """The texts as a folder with a sub-folder a domain, two files each; returns it."""
    for name, text in TEXTS.items():
        (folder / name).mkdir(parents=True)
        for number in range(2):
            (folder / name / f"{number}.txt").write_text(text[number * 900 :], encoding="utf-8")
    return folder
