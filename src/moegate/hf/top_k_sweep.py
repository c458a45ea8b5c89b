"""A trained model with other numbers of experts per token: what it loses, and what time it saves."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from moegate.hf.layers import moe_layers
from moegate.hf.loading import TextBatch, Tokenizer
from moegate.hf.token_texts import text_bytes
from moegate.hf.top_k import at_top_k

__all__ = ["TopKResult", "sweep_top_k"]


@dataclass(frozen=True)
class TopKResult:
    """What a model does with ``K`` experts per token.

    Attributes:
        top_k: ``K``.
        trained: whether the model came with this ``K``.
        loss: the mean cross-entropy of the predicted tokens, in nats.
        bits_per_byte: the same, of the text's bytes, so that models with other tokenizers compare.
        tokens_per_second: of the forward.
        tokens: how many were predicted.
    """

    top_k: int
    trained: bool
    loss: float
    bits_per_byte: float
    tokens_per_second: float
    tokens: int

    def to_dict(self) -> dict[str, Any]:
        """JSON values; None where a number is not finite."""
        values = asdict(self)
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }


@torch.no_grad()
def sweep_top_k(
    model: nn.Module,
    batches: Iterable[TextBatch],
    tokenizer: Tokenizer,
    top_k: Sequence[int],
    *,
    done: Callable[[], None] = lambda: None,
) -> list[TopKResult]:
    """Evaluates a causal language model at each ``K``, and times its forward.

    The values of ``K`` take turns on each batch, so that what else the machine does touches all of them alike; the
    first batch is run once more beforehand, untimed. The first token of a window is not predicted.

    Args:
        model: a model of transformers.
        batches: of ``moegate.hf.texts_to_batches``.
        tokenizer: whose ids they are; it says how many bytes the tokens stand for.
        top_k: the values of ``K``.
        done: called after each batch and ``K``, for progress.

    Raises:
        ValueError: there is no text, a value of ``K`` does not fit or is there twice, or the model predicts no tokens.

    Example:
        >>> from transformers import MixtralConfig, MixtralForCausalLM
        >>> from moegate.hf.loading import ByteTokenizer, texts_to_batches
        >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 256}
        >>> model = MixtralForCausalLM(MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)).eval()
        >>> batches = list(texts_to_batches(["to be or not to be"], ByteTokenizer()))
        >>> [(row.top_k, row.trained, row.tokens) for row in sweep_top_k(model, batches, ByteTokenizer(), (1, 2))]
        [(1, False, 17), (2, True, 17)]
    """
    tallies = {value: _Tally() for value in top_k}
    if len(tallies) < len(top_k) or not tallies:
        raise ValueError(f"top_k is {list(top_k)}; pass the values of K, each once.")
    trained = max((layer.top_k for layer in moe_layers(model)), default=0)
    for value in tallies:
        with at_top_k(model, value):
            pass  # says at once what can't be
    num_bytes, first = 0, True
    for batch in batches:
        num_bytes += _predicted_bytes(batch, tokenizer)
        for value, tally in tallies.items():
            with at_top_k(model, value):
                if first:
                    _forward(model, batch, value)
                tally.add(*_timed(model, batch, value))
            done()
        first = False
    if not num_bytes or not next(iter(tallies.values())).predicted:
        raise ValueError("There is no text to evaluate: every window has fewer than two tokens.")
    return [tally.result(value, trained, num_bytes) for value, tally in tallies.items()]


class _Tally:
    """Sums over the batches at one ``K``."""

    def __init__(self) -> None:
        self.nats = 0.0
        self.predicted = 0
        self.seen = 0
        self.seconds = 0.0

    def add(self, nats: float, predicted: int, seen: int, seconds: float) -> None:
        self.nats += nats
        self.predicted += predicted
        self.seen += seen
        self.seconds += seconds

    def result(self, top_k: int, trained: int, num_bytes: int) -> TopKResult:
        return TopKResult(
            top_k=top_k,
            trained=top_k == trained,
            loss=self.nats / self.predicted,
            bits_per_byte=self.nats / math.log(2) / num_bytes,
            tokens_per_second=self.seen / max(self.seconds, 1e-9),
            tokens=self.predicted,
        )


def _timed(model: nn.Module, batch: TextBatch, top_k: int) -> tuple[float, int, int, float]:
    """Nats, predicted tokens, seen tokens and seconds of a batch."""
    device = batch.input_ids.device
    _synchronize(device)
    start = time.perf_counter()
    logits_BSV = _forward(model, batch, top_k)
    _synchronize(device)
    seconds = time.perf_counter() - start
    target_BS = batch.input_ids[:, 1:].masked_fill(batch.attention_mask[:, 1:] == 0, -100)
    nats = nn.functional.cross_entropy(logits_BSV[:, :-1].flatten(0, 1).float(), target_BS.flatten(), reduction="sum")
    return float(nats), int((target_BS >= 0).sum()), batch.num_tokens, seconds


def _forward(model: nn.Module, batch: TextBatch, top_k: int) -> Tensor:
    try:
        logits = getattr(model(**batch.inputs, use_cache=False), "logits", None)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{type(model).__name__} does not run with top_k={top_k}: {reason}") from error
    if logits is None or logits.shape[:2] != batch.input_ids.shape:
        raise ValueError(f"{type(model).__name__} predicts no next tokens: a sweep needs a causal language model.")
    return logits  # type: ignore[no-any-return]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _predicted_bytes(batch: TextBatch, tokenizer: Tokenizer) -> int:
    """The bytes of the text of all tokens but the first of each window."""
    total = 0
    for ids, mask in zip(batch.input_ids.tolist(), batch.attention_mask.sum(dim=1).tolist(), strict=True):
        total += text_bytes(tokenizer, ids[:mask]) - text_bytes(tokenizer, ids[:1])
    return total
