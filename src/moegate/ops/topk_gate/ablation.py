"""The gate with one of its optimisations switched off: a study of what each of them brings.

One rule, sigmoid scores plus a bias and renormalised weights, of float32 logits. Whatever is switched off, the result
has the bits of ``topk_gate``; only time and the number of instructions differ. ``topk_gate`` itself is always whole.
"""

import torch
from torch import Tensor

from moegate.ops.library import define, register_fake
from moegate.ops.topk_gate import Gated
from moegate.ops.topk_gate.options import check_sizes, options_for
from moegate.ops.topk_gate.reference import topk_gate_reference

OPTIMISATIONS = ("none", "blocking", "tree_reduction", "branch_free", "structure_of_arrays")
"""What can be switched off; the place of a name is the number that the operator knows it by.

- ``blocking``: all stages of a few rows while they lie close to the processor; without it, one stage for all rows
  before the next, with keys ``[T, E]`` in memory between.
- ``tree_reduction``: a row is reduced lane by lane in vectors; without it, by scalar chains.
- ``branch_free``: compare, compress, and rank by counting; without it, a sorted list of the best and a branch for each
  expert.
- ``structure_of_arrays``: the keys lie one after another, and the place of a key is its expert; without it, each key
  lies beside its expert's number.
"""

_EPS = 1e-20


def ablated_topk_gate(
    logits_TE: Tensor, bias_E: Tensor, *, top_k: int, switched_off: str = "none", prefetch: bool = False
) -> Gated:
    """``topk_gate`` with ``score="sigmoid"``, a bias and ``renormalize=True``, without one of its optimisations.

    Source of the four: "MoeGatingTopK: principles, algorithm, optimisation" (see the articles), its table 5.2.

    Args:
        logits_TE: ``[T, E]`` float32, at most 65,536 experts.
        bias_E: ``[E]`` float32.
        top_k: experts per token, from 1 to E.
        switched_off: one of ``OPTIMISATIONS``.
        prefetch: whether to ask for the rows ahead, which ``topk_gate`` leaves to the processor.

    Returns:
        A ``Gated`` of weights and int64 indices.

    Raises:
        TypeError, ValueError: when an argument does not fit; the message says what is expected.

    Example:
        >>> gated = ablated_topk_gate(torch.tensor([[0.0, 2.0, 2.0]]), torch.zeros(3), top_k=2, switched_off="blocking")
        >>> gated.index.tolist(), gated.weights.tolist()
        ([[1, 2]], [[0.5, 0.5]])
    """
    if switched_off not in OPTIMISATIONS:
        raise ValueError(f"switched_off must be one of {', '.join(OPTIMISATIONS)}; got {switched_off!r}.")
    if logits_TE.dtype != torch.float32 or bias_E.dtype != torch.float32:
        raise TypeError(f"The study is of float32 logits and bias, got {logits_TE.dtype} and {bias_E.dtype}.")
    if logits_TE.ndim != 2 or not 1 <= logits_TE.shape[1] <= 65536 or bias_E.shape != logits_TE.shape[1:]:
        shapes = f"{tuple(logits_TE.shape)} and {tuple(bias_E.shape)}"
        raise ValueError(f"logits must be [T, E] with 1 to 65,536 experts, and the bias [E]; got {shapes}.")
    check_sizes(logits_TE.shape[1], top_k, 1, 1, by_top2_sum=False)
    number = OPTIMISATIONS.index(switched_off)
    weights_TK, index_TK = torch.ops.moegate.topk_gate_ablation(
        logits_TE.detach(), bias_E.detach(), top_k, _EPS, number, prefetch
    )
    return Gated(weights_TK, index_TK, None, None)


def _reference(
    logits_TE: Tensor, bias_E: Tensor, top_k: int, eps: float, switched_off: int, prefetch: bool
) -> tuple[Tensor, Tensor]:
    options = options_for(
        logits_TE.shape[1],
        True,
        top_k,
        "sigmoid",
        1,
        1,
        "max",
        True,
        eps,
        1.0,
        "logits",
        torch.int64,
        False,
        False,
        False,
    )
    return topk_gate_reference(logits_TE, bias_E, None, *options)


def _fake(
    logits_TE: Tensor, bias_E: Tensor, top_k: int, eps: float, switched_off: int, prefetch: bool
) -> tuple[Tensor, Tensor]:
    if logits_TE.ndim != 2:
        raise RuntimeError(f"logits must have 2 dimensions, got {logits_TE.ndim}.")
    shape = (logits_TE.shape[0], top_k)
    return logits_TE.new_empty(shape), logits_TE.new_empty(shape, dtype=torch.int64)


define(
    "topk_gate_ablation(Tensor logits, Tensor bias, int top_k, float eps, int switched_off, bool prefetch) "
    "-> (Tensor weights, Tensor index)",
    _reference,
)
register_fake("topk_gate_ablation", _fake)
