"""TRL's ``SFTTrainer``: it computes its loss outside the model, and adds ``outputs.aux_loss`` itself."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback

from moegate.balance.controllers import SignBias
from moegate.hf import RoutingCallback

from .small_models import LAYERS, TOP_K, VOCABULARY, Oracle, deepseek, gradients, qwen

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what its import warns of is its own affair
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

COEFFICIENT = 0.05
WORDS = [f"w{number}" for number in range(VOCABULARY - 3)]
SETTINGS = {
    "max_steps": 1,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_grad_norm": 0.0,
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "save_strategy": "no",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "train_sampling_strategy": "sequential",
    "activation_checkpointing": False,
}
TEXTS = [" ".join(WORDS[(3 * row + 5 * place) % len(WORDS)] for place in range(6 + row)) for row in range(8)]

pytestmark = pytest.mark.filterwarnings("ignore")


def tokenizer() -> PreTrainedTokenizerFast:
    words = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", *WORDS])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


class Gradients(TrainerCallback):
    def __init__(self) -> None:
        self.first: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, *_: Any, model: nn.Module, **__: Any) -> None:
        self.first = self.first or gradients(model)


def trained(
    model: PreTrainedModel, folder: Path, callback: RoutingCallback, **changes: Any
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    kept = Gradients()
    trainer = SFTTrainer(
        model,
        SFTConfig(str(folder), **(SETTINGS | changes)),
        train_dataset=Dataset.from_dict({"text": TEXTS}),
        processing_class=tokenizer(),
        callbacks=[kept, callback],
    )
    trainer.train()
    return kept.first, trainer.state.log_history


def preferred(folder: Path, own: float, coefficient: float | None) -> dict[str, Tensor]:
    """The gradients of a step of DPO."""
    kept = Gradients()
    pairs = {"prompt": TEXTS[:4], "chosen": TEXTS[2:6], "rejected": TEXTS[4:]}
    trainer = DPOTrainer(
        qwen(),
        ref_model=qwen(),
        args=DPOConfig(str(folder), **SETTINGS, router_aux_loss_coef=own),
        train_dataset=Dataset.from_dict(pairs),
        processing_class=tokenizer(),
        callbacks=[kept, RoutingCallback(balance_loss=coefficient)],
    )
    trainer.train()
    return kept.first


def masks() -> list[Tensor]:
    """The masks of the two micro-batches: the texts, each with the end token that TRL puts on."""
    lengths = [len(text.split()) + 1 for text in TEXTS[:4]]
    return [
        torch.tensor([[1] * length + [0] * (max(pair) - length) for length in pair])
        for pair in (lengths[:2], lengths[2:])
    ]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_layers_loss_takes_the_place_of_the_pooled_one(checkpointing: bool, tmp_path: Path) -> None:
    own = {"router_aux_loss_coef": 0.3, "activation_checkpointing": checkpointing}
    found, history = trained(qwen(), tmp_path, RoutingCallback(balance_loss=COEFFICIENT), **own)
    alone, _ = trained(qwen(), tmp_path, RoutingCallback(), router_aux_loss_coef=0.0)  # nothing to take the place of
    model = qwen()
    oracle = Oracle(model)
    values = []
    for call, mask in enumerate(masks()):
        words = [tokenizer()(text + " </s>")["input_ids"] for text in TEXTS[2 * call : 2 * call + 2]]
        ids = torch.tensor([row + [0] * (mask.shape[1] - len(row)) for row in words])
        model(input_ids=ids, attention_mask=mask)
        balance = oracle.balance(call, mask)
        (COEFFICIENT / 2 * balance).backward()
        values.append(balance.item())
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(found[name] - alone[name], gradient, rtol=1e-3, atol=1e-6)
    log = history[0]
    assert log["routing/balance_loss/mean"] == pytest.approx(sum(values) / 2 / LAYERS, rel=1e-5)
    # What TRL logs and adds with its own coefficient.
    assert 0.3 * log["aux_loss"] == pytest.approx(COEFFICIENT * sum(values) / 2, rel=1e-5)


def test_a_family_without_a_loss_of_its_own_gets_one(tmp_path: Path) -> None:
    found, _ = trained(deepseek(), tmp_path, RoutingCallback(balance_loss=COEFFICIENT))
    alone, _ = trained(deepseek(), tmp_path, RoutingCallback())
    gate = "model.layers.0.mlp.gate.weight"
    assert (found[gate] - alone[gate]).abs().max() > 1e-5


def test_counts_and_bias(tmp_path: Path) -> None:
    model = deepseek()
    oracle = Oracle(model)
    callback = RoutingCallback(bias_controller=SignBias, load_file="load.jsonl")
    _, history = trained(model, tmp_path, callback)
    load = oracle.load(0, masks())
    assert sum(load) == TOP_K * sum(int(mask.sum()) for mask in masks())
    assert history[0]["routing/max_violation/max"] >= max(load) / (sum(load) / len(load)) - 1
    mean = sum(load) / len(load)
    bias = model.model.layers[0].mlp.gate.e_score_correction_bias.tolist()
    assert all(
        (first - second) * (load_b - load_a) >= 0
        for first, load_a in zip(bias, load, strict=True)
        for second, load_b in zip(bias, load, strict=True)
    )
    assert any(bias) and mean


def test_the_coefficient_is_the_same_whoever_adds_the_loss(tmp_path: Path) -> None:
    # DPO keeps its coefficient to itself: the model's configuration has another. With 0 it adds nothing.
    added, left, alone = (preferred(tmp_path, *way) for way in ((0.3, COEFFICIENT), (0.0, COEFFICIENT), (0.0, None)))
    gate = "model.layers.1.mlp.gate.weight"
    assert (left[gate] - alone[gate]).abs().max() > 1e-4
    torch.testing.assert_close(added[gate], left[gate], rtol=1e-3, atol=1e-6)


def test_without_arguments_the_loss_that_trl_adds_gives_way_at_its_weight(tmp_path: Path) -> None:
    own = {"router_aux_loss_coef": 0.3}
    by_default, by_name, pooled = (
        trained(qwen(), tmp_path, callback, **own)[0]
        for callback in (RoutingCallback(), RoutingCallback(balance_loss="model"), RoutingCallback(balance_loss=None))
    )
    gate = "model.layers.0.mlp.gate.weight"
    torch.testing.assert_close(by_default[gate], by_name[gate])
    assert (by_default[gate] - pooled[gate]).abs().max() > 1e-4
