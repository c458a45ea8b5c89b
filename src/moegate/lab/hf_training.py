"""Small transformers models on the text domains, balanced in several ways by ``moegate.hf.RoutingCallback``.

``python -m moegate.lab.hf_training --seeds 3 --steps 300 --output results.jsonl`` runs what docs/results/hf-training.md
shows; a run that was interrupted goes on where it stopped.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

from moegate import metrics
from moegate.balance.controllers import BiasController, SignBias
from moegate.hf.training.monitor import RoutingMonitor
from moegate.lab.data import text
from moegate.lab.data.batches import TextBatches, text_evaluation_batches
from moegate.lab.logging.jsonl import read_metrics
from moegate.lab.sweep.intervals import estimate

__all__ = ["ARMS", "Arm", "Scale", "run_arm", "table"]


@dataclass(frozen=True)
class Arm:
    """One way to train: the kind of model, the pooled loss of transformers, and what the callback adds.

    Attributes:
        model: ``qwen3_moe`` (softmax, 8 experts, 2 a token) or ``deepseek_v3`` (sigmoid with a selection bias, a shared
            expert).
        pooled: the coefficient of the pooled loss; 0 for none.
        balance_loss: the coefficient of each layer's loss, or ``"model"`` for the pooled one's weight; None for none.
        bias_controller: of the selection bias; None leaves it alone.
    """

    model: str
    pooled: float = 0.0
    balance_loss: float | str | None = None
    bias_controller: Callable[[int], BiasController] | None = None


ARMS = {
    "qwen3: no loss": Arm("qwen3_moe"),
    "qwen3: pooled, 0.01": Arm("qwen3_moe", pooled=0.01),
    "qwen3: per layer, same weight": Arm("qwen3_moe", pooled=0.01, balance_loss="model"),
    "deepseek_v3: bias as it is": Arm("deepseek_v3"),
    "deepseek_v3: bias update": Arm("deepseek_v3", bias_controller=SignBias),
    "deepseek_v3: bias update, rate 0.01": Arm("deepseek_v3", bias_controller=partial(SignBias, rate=0.01)),
}
"""By name; the first of each model is what the others are compared with."""


@dataclass(frozen=True)
class Scale:
    """How large a run is: optimizer steps, sequences a step, and bytes a sequence."""

    steps: int = 300
    batch_size: int = 8
    sequence_length: int = 128
    windows_per_domain: int = 16


class _Windows(Dataset[dict[str, Any]]):
    """The rows of the training batches, in order."""

    def __init__(self, batches: TextBatches, scale: Scale) -> None:
        self._batches, self._scale = batches, scale

    def __len__(self) -> int:
        return self._scale.steps * self._scale.batch_size

    def __getitem__(self, number: int) -> dict[str, Any]:
        step, row = divmod(number, self._scale.batch_size)
        tokens_S = self._batches.batch(step).tokens[row]
        return {"input_ids": tokens_S, "labels": tokens_S}


def run_arm(arm: Arm, *, seed: int, scale: Scale, folder: Path) -> dict[str, Any]:
    """Train an arm with ``transformers.Trainer`` and read it on held-out text.

    Returns:
        ``bits_per_byte``, ``max_violation`` and ``dead_fraction`` (a number a layer), ``tokens``, ``parameters``,
        ``seconds`` of training.
    """
    from transformers import Trainer, TrainingArguments, set_seed

    from moegate.hf.training.callback import RoutingCallback

    set_seed(seed)
    model = _model(arm, scale)
    corpus = text.load()
    batches = TextBatches(corpus, batch_size=scale.batch_size, sequence_length=scale.sequence_length, seed=seed)
    arguments = TrainingArguments(
        str(folder),
        max_steps=scale.steps,
        per_device_train_batch_size=scale.batch_size,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=scale.steps // 10,
        logging_steps=50,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        train_sampling_strategy="sequential",
        seed=seed,
    )
    callback = RoutingCallback(balance_loss=arm.balance_loss, bias_controller=arm.bias_controller, alarms=False)
    trainer = Trainer(model, arguments, train_dataset=_Windows(batches, scale), callbacks=[callback])
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    return _read(model, corpus, scale) | {
        "tokens": scale.steps * scale.batch_size * scale.sequence_length,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": round(seconds, 1),
    }


@torch.no_grad()
def _read(model: nn.Module, corpus: text.TextCorpus, scale: Scale) -> dict[str, Any]:
    """Held-out bits per byte, the same number of bytes from each domain, and the balance of each layer there."""
    nats, count = 0.0, 0
    model.eval()
    with RoutingMonitor(model) as monitor:
        for batch in text_evaluation_batches(
            corpus, batch_size=8, sequence_length=scale.sequence_length, windows_per_domain=scale.windows_per_domain
        ):
            logits = model(input_ids=batch.tokens).logits
            nats += F.cross_entropy(logits.flatten(0, 1).double(), batch.targets.flatten(), reduction="sum").item()
            count += batch.targets.numel()
        tally = monitor.evaluation()
    loads = [tally.load(number) for number in range(len(tally.num_experts))]
    return {
        "bits_per_byte": nats / count / math.log(2),
        "max_violation": [metrics.max_violation(load_E) for load_E in loads],
        "dead_fraction": [metrics.dead_fraction(load_E) for load_E in loads],
    }


def _model(arm: Arm, scale: Scale) -> nn.Module:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    common: dict[str, Any] = {
        "vocab_size": text.VOCABULARY_SIZE,
        "hidden_size": 128,
        "intermediate_size": 256,
        "moe_intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_experts_per_tok": 2,
        "max_position_embeddings": scale.sequence_length,
        "use_cache": False,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    model: nn.Module
    own: dict[str, Any]
    if arm.model == "qwen3_moe":
        own = {"num_experts": 8, "num_key_value_heads": 2, "head_dim": 32, "output_router_logits": arm.pooled > 0}
        model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**common, **own, router_aux_loss_coef=arm.pooled))
    else:
        own = {
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 0,
            "num_key_value_heads": 4,
            "q_lora_rank": None,
            "kv_lora_rank": 32,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 16,
            "v_head_dim": 32,
        }
        model = DeepseekV3ForCausalLM(DeepseekV3Config(**common, **own))
    return model


def table(records: Sequence[dict[str, Any]]) -> str:
    """Markdown: each arm's means over seeds with their 95 % intervals, and differences to its model's first arm.

    Example:
        >>> rows = [{"arm": "qwen3: no loss", "seed": seed, "bits_per_byte": 3.0, "max_violation": [1.0, 2.0],
        ...          "dead_fraction": [0.0, 0.0]} for seed in (0, 1)]
        >>> print(table(rows).splitlines()[-1])
        | qwen3: no loss | 3.000 ± 0.000 | – | 1.50 ± 0.00 | 2.00 ± 0.00 |
    """
    lines = [
        "| arm | bits/byte | difference | MaxVio, mean of layers | MaxVio, worst layer |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name in ARMS:
        runs = {record["seed"]: record for record in records if record["arm"] == name}
        if runs:
            lines.append("| " + " | ".join(_cells(name, runs, _first(name, records))) + " |")
    return "\n".join(lines)


def _cells(name: str, runs: dict[int, dict[str, Any]], first: dict[int, dict[str, Any]]) -> Iterator[str]:
    yield name
    yield _estimate([run["bits_per_byte"] for run in runs.values()], 3)
    pairs = [run["bits_per_byte"] - first[seed]["bits_per_byte"] for seed, run in runs.items() if seed in first]
    yield "–" if runs == first or not pairs else _estimate(pairs, 3, sign="+")
    yield _estimate([sum(run["max_violation"]) / len(run["max_violation"]) for run in runs.values()], 2)
    yield _estimate([max(run["max_violation"]) for run in runs.values()], 2)


def _first(name: str, records: Sequence[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    first = next(arm for arm in ARMS if ARMS[arm].model == ARMS[name].model)
    return {record["seed"]: record for record in records if record["arm"] == first}


def _estimate(values: Sequence[float], digits: int, *, sign: str = "") -> str:
    mean, ci = estimate(values)
    return f"{mean:{sign}.{digits}f}" + ("" if ci is None else f" ± {ci:.{digits}f}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing in the output file, seed by seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=Scale.steps)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True, help="a file of JSON lines, one a run")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    scale = Scale(steps=options.steps)
    records = read_metrics(options.output)
    # A line that a killed run left half is written anew.
    options.output.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    done = {(record["arm"], record["seed"], record["steps"]) for record in records}
    for seed in range(options.seeds):
        for name, arm in ARMS.items():
            if (name, seed, scale.steps) not in done:
                result = run_arm(arm, seed=seed, scale=scale, folder=options.output.parent / "trainer")
                with options.output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"arm": name, "seed": seed, "steps": scale.steps} | result) + "\n")
    print(table([record for record in read_metrics(options.output) if record["steps"] == scale.steps]))


if __name__ == "__main__":
    main()
