"""The reference: floats become integers that sort alike, and the index joins the key to break ties."""

import torch
from torch import Tensor

_NAN_KEY_OFFSET = 1  # NaN sits one above the least integer, which is kept for excluded elements


def ordered_topk_reference(values: Tensor, k: int, excluded: Tensor | None = None) -> Tensor:
    if values.dtype != torch.float64:
        return unique_keys(values, excluded).topk(k, dim=-1, sorted=True).indices
    # A float64 key fills its integer, so the index can't join it; a stable sort breaks the ties instead.
    key = _sortable(values, torch.int64, excluded)
    return torch.sort(key, dim=-1, descending=True, stable=True).indices[..., :k].contiguous()


def topk_by_key_reference(key: Tensor, k: int) -> Tensor:
    return _with_index(key).topk(k, dim=-1, sorted=True).indices


def unique_keys(values: Tensor, excluded: Tensor | None = None) -> Tensor:
    """``[..., N]`` int64, no two alike in a row, whose descending order is that of the contract; at most float32."""
    return _with_index(_sortable(values.float(), torch.int32, excluded))


def index_of_key(unique_key: Tensor, num_elements: int) -> Tensor:
    """The index that a unique key holds in its lower half."""
    return num_elements - 1 - (unique_key & 0xFFFFFFFF)


def _with_index(key: Tensor) -> Tensor:
    num_elements = key.shape[-1]
    lowest_first = torch.arange(num_elements - 1, -1, -1, device=key.device, dtype=torch.int64)
    return (key.to(torch.int64) << 32) | lowest_first


def _sortable(values: Tensor, integer: torch.dtype, excluded: Tensor | None) -> Tensor:
    """Integers in the order of the floats: the bits of a negative float count downwards, so they are flipped."""
    info = torch.iinfo(integer)
    bits = (values.detach() + 0.0).view(integer)  # adding zero turns -0.0 into +0.0
    key = bits ^ ((bits >> (info.bits - 1)) & info.max)
    key = key.masked_fill(values.isnan(), info.min + _NAN_KEY_OFFSET)
    return key if excluded is None else key.masked_fill(excluded, info.min)
