"""Lightning's ``Trainer`` with the callback."""

import functools
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from moegate.balance.controllers import SignBias

from .small_models import Oracle, batch, deepseek, gradients, qwen

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what its import warns of is its own affair
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import ModelCheckpoint

    from moegate.hf.training.lightning import RoutingCallback

COEFFICIENT, RATE = 0.05, 0.01
# Every step sees the same rows, so that a resumed run, which starts its epoch over, does too.
ROWS = {name: values[[0, 1, 2, 3] * 2] for name, values in batch(seed=5).items()}

pytestmark = pytest.mark.filterwarnings("ignore")


class Module(pl.LightningModule):
    """A module around a model; its loss is the model's, or made of the logits."""

    def __init__(self, model: PreTrainedModel, *, own_loss: bool = False) -> None:
        super().__init__()
        self.model, self.own_loss = model, own_loss
        self.first: dict[str, Tensor] = {}

    def training_step(self, inputs: dict[str, Tensor], _: int) -> Tensor:
        if not self.own_loss:
            return self.model(**inputs).loss
        labels = inputs.pop("labels")
        return self.model.loss_function(self.model(**inputs).logits, labels, self.model.config.vocab_size)

    def validation_step(self, inputs: dict[str, Tensor], _: int) -> None:
        self.model(**inputs)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)

    def on_before_optimizer_step(self, _: Any) -> None:
        self.first = self.first or gradients(self.model)


def fitted(
    module: Module, folder: Path, *callbacks: pl.Callback, resume: Path | None = None, **changes: Any
) -> pl.Trainer:
    rows = [{name: values[row] for name, values in ROWS.items()} for row in range(8)]
    settings: dict[str, Any] = {"max_steps": 2, "accumulate_grad_batches": 2, "enable_checkpointing": False}
    trainer = pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        devices=1,
        logger=False,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **(settings | changes),
    )
    loader = DataLoader(rows, batch_size=2)
    trainer.fit(module, loader, loader, ckpt_path=resume)
    return trainer


@pytest.mark.parametrize("own_loss", [False, True])
def test_gradients_counts_and_logs(own_loss: bool, tmp_path: Path) -> None:
    micro = [{name: values[row : row + 2] for name, values in ROWS.items()} for row in (0, 2)]
    model = qwen()
    oracle = Oracle(model)
    for call, inputs in enumerate(micro):
        loss = model(**inputs).loss
        ((loss + COEFFICIENT * oracle.balance(call, inputs["attention_mask"])) / 2).backward()
    wanted, load = gradients(model), oracle.load(0, [inputs["attention_mask"] for inputs in micro])
    module = Module(qwen(), own_loss=own_loss)
    trainer = fitted(module, tmp_path, RoutingCallback(balance_loss=COEFFICIENT, load_file="load.jsonl"))
    for name, gradient in wanted.items():
        torch.testing.assert_close(module.first[name], gradient, rtol=1e-4, atol=1e-6)
    records = [json.loads(line) for line in (tmp_path / "load.jsonl").read_text().splitlines()]
    training = [record for record in records if record["split"] == "train"]
    assert training[0]["load"][0] == load
    assert [record["step"] for record in training] == [1, 2]
    assert [sum(record["load"][0]) for record in records if record["split"] == "val"] == [
        2 * int(ROWS["attention_mask"].sum())
    ]
    assert {"routing/max_violation/max", "val_routing/max_violation/max"} <= trainer.callback_metrics.keys()


def test_the_bias_moves_and_is_resumed(tmp_path: Path) -> None:
    def biases(module: Module) -> list[list[float]]:
        return [layer.mlp.gate.e_score_correction_bias.tolist() for layer in module.model.model.layers]

    kept = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1)
    callback = RoutingCallback(bias_controller=functools.partial(SignBias, rate=RATE))
    whole = Module(deepseek().to(torch.bfloat16))
    fitted(whole, tmp_path, callback, kept, max_steps=4, max_epochs=2, enable_checkpointing=True)
    callback = RoutingCallback(bias_controller=functools.partial(SignBias, rate=RATE))
    rest = Module(deepseek().to(torch.bfloat16))
    trainer = fitted(rest, tmp_path, callback, resume=tmp_path / "step=3.ckpt", max_steps=4, max_epochs=2)
    assert trainer.global_step == 4
    assert biases(rest) == biases(whole)
    assert any(map(any, biases(whole)))
