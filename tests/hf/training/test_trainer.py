"""``transformers.Trainer`` with the callback, against hooks of the test's own and a loop written out."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DeepseekV3ForCausalLM, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from moegate.balance.controllers import PIDBias, SignBias
from moegate.hf import RoutingCallback
from moegate.hf.training import RoutingWarning, freeze_routers

from .small_models import EXPERTS, LAYERS, Oracle, assert_same, batch, deepseek, gradients, qwen

COEFFICIENT, RATE = 0.05, 0.01
ROWS = batch(rows=16, length=12, seed=5)
HELD_OUT = batch(rows=4, length=12, seed=6)


def rows_of(inputs: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    return [{name: values[row] for name, values in inputs.items()} for row in range(len(inputs["input_ids"]))]


class Before(TrainerCallback):
    """Stands where the integrations stand: before the callbacks of the user. Keeps what it sees."""

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []
        self.gradients: list[dict[str, Tensor]] = []

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        self.logs.append(dict(logs))

    def on_pre_optimizer_step(self, *_: Any, model: nn.Module, **__: Any) -> None:
        self.gradients.append(gradients(model))


def trainer_of(model: PreTrainedModel, folder: Path, callback: Any, **changes: Any) -> tuple[Trainer, Before]:
    settings = {
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 3,
        "train_sampling_strategy": "sequential",
    }
    before = Before()
    trainer = Trainer(
        model,
        TrainingArguments(str(folder), **(settings | changes)),
        train_dataset=rows_of(ROWS),
        eval_dataset=rows_of(HELD_OUT),
        callbacks=[before, callback],
    )
    return trainer, before


def masks_of(rows: range) -> list[Tensor]:
    """The masks of micro-batches of two rows."""
    return [ROWS["attention_mask"][row : row + 2] for row in rows]


def lines(path: Path, split: str = "train") -> list[dict[str, Any]]:
    return [record for line in path.read_text().splitlines() if (record := json.loads(line))["split"] == split]


def test_what_is_logged(tmp_path: Path) -> None:
    model = qwen()
    oracle = Oracle(model)
    trainer, before = trainer_of(model, tmp_path, RoutingCallback(load_file="load.jsonl"))
    trainer.train()
    steps = [log for log in before.logs if "loss" in log]
    written = lines(tmp_path / "load.jsonl")
    assert [record["step"] for record in written] == [1, 2, 3]
    for number in range(LAYERS):
        calls = oracle.received[number]
        for step, record in enumerate(written):
            rows = slice(2 * step, 2 * step + 2)
            oracle.received[number] = calls[rows]
            assert record["load"][number] == oracle.load(number, masks_of(range(0, 16, 2))[rows])
    for log, record in zip(steps, written, strict=True):
        worst = max(max(load) / (sum(load) / EXPERTS) - 1 for load in record["load"])
        assert log["routing/max_violation/max"] == pytest.approx(worst)
    # The history holds the same: what report_to would have sent is what a resumed run reads.
    assert [entry["routing/max_violation/max"] for entry in trainer.state.log_history if "loss" in entry] == [
        log["routing/max_violation/max"] for log in steps
    ]


def test_the_number_of_names_is_bounded(tmp_path: Path) -> None:
    names = []
    for folder, changes in (("a", {}), ("b", {"num_hidden_layers": 5, "num_experts": 24})):
        trainer, before = trainer_of(qwen(**changes), tmp_path / folder, RoutingCallback(balance_loss=0.1), max_steps=1)
        trainer.train()
        names.append({name for name in before.logs[0] if name.startswith("routing/")})
    assert names[0] == names[1]
    assert 30 < len(names[0]) < 50


def test_evaluation_is_apart_and_doubles_nothing(tmp_path: Path) -> None:
    model = qwen()
    trainer, before = trainer_of(
        model, tmp_path, RoutingCallback(load_file="load.jsonl"), eval_strategy="steps", eval_steps=3
    )
    first = trainer.evaluate()
    trainer.train()
    again = trainer.evaluate()  # the model is its own again
    assert sum(lines(tmp_path / "load.jsonl", "eval")[0]["load"][0]) == 2 * int(HELD_OUT["attention_mask"].sum())
    assert [sum(record["load"][0]) for record in lines(tmp_path / "load.jsonl")] == [
        2 * int(ROWS["attention_mask"][rows : rows + 4].sum()) for rows in (0, 4, 8)
    ]
    evaluations = [log for log in before.logs if "eval_loss" in log]
    assert ["eval_routing/max_violation/max" in log for log in evaluations] == [True, True, False]
    assert not any(name.startswith("routing/") for log in evaluations for name in log)
    assert "eval_routing/max_violation/max" in first
    assert not any("routing" in name for name in again)


@pytest.mark.parametrize("checkpointing", [None, {"use_reentrant": False}, {"use_reentrant": True}])
@pytest.mark.parametrize("make", [functools.partial(qwen, output_router_logits=True), deepseek])
def test_gradients_of_a_step(
    make: Callable[..., PreTrainedModel], checkpointing: dict[str, bool] | None, tmp_path: Path
) -> None:
    micro = [{name: values[row : row + 2] for name, values in ROWS.items()} for row in (0, 2)]
    items = sum(int((inputs["labels"][:, 1:] != -100).sum()) for inputs in micro)
    wanted = step_gradients(make, micro, items)
    options = (
        {}
        if checkpointing is None
        else {"activation_checkpointing": True, "activation_checkpointing_kwargs": checkpointing}
    )
    trainer, before = trainer_of(
        make(), tmp_path, RoutingCallback(balance_loss=COEFFICIENT, load_file="load.jsonl"), max_steps=1, **options
    )
    trainer.train()
    assert_same(before.gradients[0], wanted)
    assert sum(lines(tmp_path / "load.jsonl")[0]["load"][0]) == 2 * int(ROWS["attention_mask"][:4].sum())


def step_gradients(
    make: Callable[..., PreTrainedModel], micro: list[dict[str, Tensor]], items: int
) -> dict[str, Tensor]:
    """The gradients of an optimizer step, its micro-batches weighted by their labels."""
    model = make()
    model.config.output_router_logits = False
    oracle = Oracle(model)
    for call, inputs in enumerate(micro):
        share = (inputs["labels"][:, 1:] != -100).sum() / items
        loss = model(**inputs).loss
        balance = oracle.balance(call, inputs["attention_mask"], sigmoid=make is deepseek)
        (share * (loss + COEFFICIENT * balance)).backward()
    return gradients(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bias_moves_once_a_step(dtype: torch.dtype, tmp_path: Path) -> None:
    model = deepseek().to(dtype)
    model.model.layers[0].mlp.gate.e_score_correction_bias.add_(4.0)  # where bfloat16 loses steps of 0.01
    start = [layer.mlp.gate.e_score_correction_bias.double().clone() for layer in model.model.layers]
    oracle = Oracle(model)
    callback = RoutingCallback(bias_controller=functools.partial(SignBias, rate=RATE), alarms=False)
    trainer, _ = trainer_of(model, tmp_path, callback)
    trainer.train()
    for number, bias_E in enumerate(start):
        calls = oracle.received[number]
        for step in range(3):
            oracle.received[number] = calls[2 * step : 2 * step + 2]
            load_E = torch.tensor(oracle.load(number, masks_of(range(4 * step, 4 * step + 4, 2)))).double()
            sign_E = torch.sign(load_E.mean() - load_E)
            bias_E.add_(RATE * (sign_E - sign_E.mean()))
        found = model.model.layers[number].mlp.gate.e_score_correction_bias
        assert found.dtype == dtype
        torch.testing.assert_close(found, bias_E.to(dtype), rtol=1e-6, atol=1e-6)


def test_a_resumed_run_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    def run(folder: Path, *, resume: bool = False) -> list[list[float]]:
        callback = RoutingCallback(bias_controller=PIDBias, balance_loss=0.1, load_file="load.jsonl")
        # The trainer itself brings back no experts: a checkpoint keeps them one by one, the model holds them together.
        model = DeepseekV3ForCausalLM.from_pretrained(folder / "checkpoint-2") if resume else deepseek()
        trainer, _ = trainer_of(model, folder, callback, max_steps=4, save_strategy="steps", save_steps=2)
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2") if resume else None)
        return [layer.mlp.gate.e_score_correction_bias.tolist() for layer in trainer.model.model.layers]

    wanted = run(tmp_path)
    whole = (tmp_path / "load.jsonl").read_text()
    with (tmp_path / "load.jsonl").open("a") as file:
        file.write('{"step": 4, "sp')  # killed in the middle of a line
    assert run(tmp_path, resume=True) == wanted
    assert (tmp_path / "load.jsonl").read_text() == whole
    (tmp_path / "checkpoint-2" / "moegate_routing.safetensors").unlink()
    with pytest.warns(RoutingWarning, match="holds no state of the bias update"):
        run(tmp_path, resume=True)
    (tmp_path / "checkpoint-2" / "moegate_routing.safetensors").write_bytes(b"\x08\0\0\0")
    with pytest.raises(ValueError, match="is damaged"):
        run(tmp_path, resume=True)


def test_frozen_routers_keep_their_bias(tmp_path: Path) -> None:
    model = deepseek()
    freeze_routers(model)
    with pytest.warns(RoutingWarning, match="The routers of 2 layers are frozen"):
        trainer, _ = trainer_of(model, tmp_path, RoutingCallback(bias_controller=SignBias), max_steps=1)
    trainer.train()
    assert not any(layer.mlp.gate.e_score_correction_bias.any() for layer in model.model.layers)


def test_a_second_training_balances_again(tmp_path: Path) -> None:
    model = deepseek()
    trainer, _ = trainer_of(model, tmp_path, RoutingCallback(bias_controller=SignBias), max_steps=1)
    trainer.train()
    after_one = model.model.layers[0].mlp.gate.e_score_correction_bias.clone()
    trainer.train()
    assert not torch.equal(after_one, model.model.layers[0].mlp.gate.e_score_correction_bias)
    assert not hooks_of(model)


def hooks_of(model: nn.Module) -> list[Any]:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [hook for module in model.modules() for kind in kinds for hook in getattr(module, kind).values()]


def test_without_arguments_the_bias_moves(tmp_path: Path) -> None:
    model = deepseek()
    oracle = Oracle(model)
    trainer, before = trainer_of(model, tmp_path, RoutingCallback, max_steps=1)  # the class: the trainer calls it
    trainer.train()
    load_E = torch.tensor(oracle.load(0, masks_of(range(0, 4, 2)))).double()
    sign_E = torch.sign(load_E.mean() - load_E)
    torch.testing.assert_close(bias(model).double(), 1e-3 * (sign_E - sign_E.mean()), rtol=1e-5, atol=1e-9)
    assert "routing/bias_spread/max" in before.logs[0] and "routing/balance_loss/mean" not in before.logs[0]
    watched, _ = trainer_of(watched_model := deepseek(), tmp_path, RoutingCallback(bias_controller=None), max_steps=1)
    watched.train()
    assert not bias(watched_model).any()


def test_a_training_that_was_broken_off_counts_nowhere(tmp_path: Path) -> None:
    class Interrupted(TrainerCallback):
        def on_step_begin(self, _: Any, state: Any, __: Any, **___: Any) -> None:
            if state.global_step == 1 and not written.exists():
                raise KeyboardInterrupt

    written = tmp_path / "done"
    trainer, _ = trainer_of(deepseek(), tmp_path, RoutingCallback(load_file="load.jsonl"), logging_steps=3)
    trainer.add_callback(Interrupted())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    written.touch()
    trainer.train()
    tokens = sum(record["tokens"][0] for record in lines(tmp_path / "load.jsonl"))
    assert tokens == int(ROWS["attention_mask"][:12].sum())
    assert not hooks_of(trainer.model)


@pytest.mark.parametrize("on", [True, False])
def test_without_arguments_a_pooled_loss_that_is_on_gives_way(on: bool, tmp_path: Path) -> None:
    def make() -> PreTrainedModel:
        return qwen(output_router_logits=on, router_aux_loss_coef=COEFFICIENT * LAYERS / 2 if on else 0.3)

    micro = [{name: values[row : row + 2] for name, values in ROWS.items()} for row in (0, 2)]
    items = sum(int((inputs["labels"][:, 1:] != -100).sum()) for inputs in micro)
    if on:
        wanted = step_gradients(make, micro, items)
    else:
        plain, seen = trainer_of(make(), tmp_path, TrainerCallback(), max_steps=1)
        plain.train()
        wanted = seen.gradients[0]
    trainer, before = trainer_of(model := make(), tmp_path, RoutingCallback(), max_steps=1)
    trainer.train()
    assert_same(before.gradients[0], wanted)
    assert ("routing/balance_loss/mean" in before.logs[0]) is on
    assert model.config.output_router_logits is on


def test_steps_that_no_log_told_of_come_with_the_last(tmp_path: Path) -> None:
    callback = RoutingCallback(load_file="load.jsonl")
    trainer, before = trainer_of(qwen(), tmp_path, callback, logging_steps=2)
    trainer.train()
    written = lines(tmp_path / "load.jsonl")
    assert [record["step"] for record in written] == [2, 3]
    assert sum(record["tokens"][0] for record in written) == int(ROWS["attention_mask"][:12].sum())
    assert "routing/max_violation/max" in before.logs[-1] and "train_runtime" in before.logs[-1]


def test_a_model_that_is_made_when_training_begins(tmp_path: Path) -> None:
    made: list[PreTrainedModel] = []

    def model_init() -> PreTrainedModel:
        made.append(deepseek())
        return made[-1]

    callback = RoutingCallback(bias_controller=SignBias)
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, report_to="none", use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False
    )
    Trainer(args=arguments, model_init=model_init, train_dataset=rows_of(ROWS), callbacks=[callback]).train()
    assert len(made) == 2
    assert not bias(made[0]).any() and bias(made[1]).any()
    assert not made[0].model.layers[0].mlp.gate._forward_hooks


def bias(model: PreTrainedModel) -> Tensor:
    return model.model.layers[0].mlp.gate.e_score_correction_bias


def test_label_smoothing_takes_the_loss_from_the_logits(tmp_path: Path) -> None:
    # The trainer keeps the labels to itself, so that the model returns no loss to add to.
    found = []
    for coefficient in (None, COEFFICIENT):
        trainer, before = trainer_of(
            qwen(), tmp_path, RoutingCallback(balance_loss=coefficient), max_steps=1, label_smoothing_factor=0.1
        )
        trainer.train()
        found.append(before.gradients[0])
    model = qwen()
    oracle = Oracle(model)
    for call, row in enumerate((0, 2)):
        inputs = {name: values[row : row + 2] for name, values in ROWS.items()}
        model(**inputs)
        (COEFFICIENT / 2 * oracle.balance(call, inputs["attention_mask"])).backward()
    wanted = gradients(model)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[1][name] - found[0][name], gradient, rtol=1e-3, atol=1e-6)


def test_a_dense_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no MoE layer"):
        trainer_of(qwen(mlp_only_layers=[0, 1]), tmp_path, RoutingCallback())
