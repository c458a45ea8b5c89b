"""Recording on two processes, under DDP and FSDP, and inside of transformers' own trainer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from record_ranks import STEPS, WORLD_SIZE, batch
from tiny_models import tiny_model
from truth import Truth

from moegate.hf import record
from moegate.hf.statistics import Statistics

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, str(HERE / "record_ranks.py")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen([*command, str(rank), str(folder)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(WORLD_SIZE)
    ]
    for run in runs:
        _, errors = run.communicate(timeout=110)
        assert run.returncode == 0, errors
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD_SIZE)]


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_processes_add_up_once(ranks, how):
    one, two = (rank[how] for rank in ranks)
    real = sum(int(batch(rank, step)[1].sum()) for rank in range(WORLD_SIZE) for step in range(STEPS))
    for mine in (one, two):
        assert mine["layers"] == ("model.layers.0.mlp", "model.layers.1.mlp")
        assert torch.equal(mine["load"], mine["seen"])
        assert torch.equal(mine["together"], one["seen"] + two["seen"])
        assert mine["tokens"].tolist() == [real] * 2
        assert mine["calls"] == WORLD_SIZE * STEPS
        assert mine["once"]
    assert not torch.equal(one["load"], two["load"])


def test_a_single_process_is_its_own_sum():
    load, tokens = torch.arange(12).view(3, 2, 2), torch.arange(6).view(3, 2)
    mine = Statistics(("a", "b"), (2, 2), load, tokens, num_calls=5)
    together = mine.reduce()
    assert torch.equal(together.load_by_phase, load)
    assert torch.equal(together.tokens, tokens.sum(dim=0))
    assert (together.num_calls, together.reduced, mine.reduced) == (5, True, False)
    assert together.reduce() is together
    assert repr(mine) == "Statistics(2 layers, 9 tokens, 5 calls)"


@pytest.mark.filterwarnings("ignore")  # what the trainer warns of is its own
def test_in_a_trainer(tmp_path):
    """With accumulation, checkpointing and an evaluation in between; a padded batch."""
    from transformers import Trainer, TrainingArguments

    ids = torch.randint(3, 60, (8, 6))
    mask = torch.ones_like(ids)
    mask[::2, 4:] = 0
    data = [{"input_ids": row, "attention_mask": real, "labels": row} for row, real in zip(ids, mask, strict=True)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        per_device_eval_batch_size=4,
        gradient_accumulation_steps=2,
        num_train_epochs=1,
        gradient_checkpointing=True,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    model = tiny_model("qwen3_moe", num_hidden_layers=2)
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data)
    truth = Truth(model)
    with record(model) as recording:
        trainer.train()
        trained = recording.statistics
        trainer.evaluate()
    truth.remove()
    assert trained.num_calls == 4
    assert recording.num_calls == 6
    assert trained.tokens.tolist() == [40] * 2
    assert recording.statistics.tokens.tolist() == [80] * 2
    # The experts have run on each training batch twice.
    assert {len(calls) for calls in truth.calls.values()} == {4 * 2 + 2}
