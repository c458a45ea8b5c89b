"""The reference of ``permute``."""

import torch
from torch import Tensor

from moegate.ops.synchronization import may_look


def wide_type(dtype: torch.dtype) -> torch.dtype:
    """What elements are multiplied and added in: float32, or the type itself where that is wider."""
    return torch.float32 if dtype.itemsize == 1 else torch.promote_types(dtype, torch.float32)


def permute_reference(hidden_TD: Tensor, slot_R: Tensor, inverse_TK: Tensor, weights_TK: Tensor | None) -> Tensor:
    if inverse_TK.numel() == 0:
        return hidden_TD.new_zeros(slot_R.shape[0], hidden_TD.shape[1])
    empty_R1 = (slot_R < 0)[:, None]
    used_R = slot_R.clamp(min=0)
    rows_RD = hidden_TD[torch.div(used_R, inverse_TK.shape[1], rounding_mode="floor")]
    if weights_TK is not None:
        rows_RD = (rows_RD.to(weights_TK.dtype) * weights_TK.reshape(-1)[used_R][:, None]).to(hidden_TD.dtype)
    return torch.where(empty_R1, torch.zeros_like(rows_RD), rows_RD)


def check_range(name: str, values: Tensor, limit: int) -> None:
    """Raises RuntimeError as the C++ operators do, where the numbers may be looked at."""
    if may_look(values) and bool(((values < -1) | (values >= limit)).any()):
        raise RuntimeError(f"{name} holds a number below -1 or above {limit - 1}: -1 stands for none.")
