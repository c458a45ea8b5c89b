"""``npu_moe_gating_top_k_softmax_v2``: softmax before or after the top-k (CANN's MoeGatingTopKSoftmaxV2)."""

import torch
from torch import Tensor

from moegate.ascend.attributes import check_integers
from moegate.ascend.compat import ASCEND, Compat, check_compat
from moegate.ascend.device import device_operator
from moegate.ascend.limits import TILING, refuse_unless
from moegate.ascend.moe_gating_top_k_softmax import check_softmax_input, check_softmax_limits, softmax_gate
from moegate.parts import check_bool
from moegate.scoring import Softmax

__all__ = ["npu_moe_gating_top_k_softmax_v2"]


def npu_moe_gating_top_k_softmax_v2(
    x: Tensor,
    *,
    k: int = 1,
    finished: Tensor | None = None,
    renorm: int | None = 0,
    output_softmax: bool | None = False,
    strict: bool = False,
    compat: Compat = ASCEND,
) -> tuple[Tensor, Tensor, Tensor]:
    """The ``k`` experts of each row and their weights, as ``torch_npu.npu_moe_gating_top_k_softmax_v2`` gives them.

    On an Ascend device the call goes to ``torch_npu``.

    Args:
        x: ``[N, E]`` or ``[B, S, E]`` logits.
        k: experts per row, from 0 to E.
        finished: bool, one value per row. A finished row has the index ``E`` in each slot; its weights are as ever.
        renorm: 0 takes the softmax over all experts, then the top-k; 1 takes the top-k of the logits, then the softmax
            over them. None is 0.
        output_softmax: whether the third output holds the softmax over all experts; never with ``renorm=1``.
        strict: whether to refuse what the devices refuse.
        compat: which behaviour to take where Ascend and moegate differ.

    Returns:
        ``y [..., k]`` in the dtype of ``x`` and ``expert_idx [..., k]`` int32; the softmax in float32, shaped like
        ``x``, or an empty tensor ``[0]``. ``y`` and the softmax are differentiable.

    Raises:
        AscendOperatorError: for an argument without a meaning, or with ``strict`` for one beyond the devices' limits.
        TypeError: when an argument is no tensor or no integer.

    Example:
        >>> import torch
        >>> y, expert_idx, softmax = npu_moe_gating_top_k_softmax_v2(torch.tensor([[0.0, 2.0, 2.0]]), k=2, renorm=1)
        >>> y.tolist(), expert_idx.tolist(), softmax.shape
        ([[0.5, 0.5]], [[1, 2]], torch.Size([0]))

    Source:
        CANN ops-transformer, ``moe/moe_gating_top_k_softmax_v2``.
    """
    check_softmax_input(x, finished, k)
    check_compat(compat)
    renorm = 0 if renorm is None else renorm
    check_integers((renorm,), ("renorm",))
    output_softmax = False if output_softmax is None else output_softmax
    check_bool("output_softmax", output_softmax)
    refuse_unless(renorm in (0, 1), TILING, "renorm must be 0 or 1, got {}.", renorm)
    if compat is ASCEND and (operator := device_operator("npu_moe_gating_top_k_softmax_v2", x)) is not None:
        on_device: tuple[Tensor, Tensor, Tensor] = operator(
            x, k=k, finished=finished, renorm=renorm, output_softmax=output_softmax
        )
        return on_device
    if strict:
        check_softmax_limits(x, k)
    y, expert_idx = softmax_gate(x, finished, k, "softmax_selected" if renorm == 1 else "softmax", compat)
    wide = x if x.dtype == torch.float64 else x.float()
    softmax = Softmax().scores(wide) if output_softmax and renorm == 0 else wide.new_zeros(0)
    return y, expert_idx, softmax
