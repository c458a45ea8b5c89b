"""Which tokens a pass of a model sees: how many, which of them are padding, where documents begin, their ids and phase.

Read from what the model was called with, never from what it computed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from moegate.trace.trace import PHASES

if TYPE_CHECKING:
    from moegate.hf.calls import Pass

__all__ = ["TokenRows", "documents", "positions_of", "token_rows"]

_FORWARD, _PREFILL, _DECODE = range(len(PHASES))
_EMBEDDED = ("inputs_embeds", "hidden_states")
_MASK_KEYS = ("full_attention", "attention")
_VISION_TYPES = "moe_mm_token_type_ids"


@dataclass(frozen=True, eq=False)
class TokenRows:
    """The tokens of one pass, row by row of its batch.

    Attributes:
        batch_size: ``B``.
        length: ``S``, the positions of each sequence in this pass.
        phase: a number of ``moegate.trace.PHASES``.
        token_mask: ``[B, S]`` bool, False for padding; None when all are real or no mask could be read.
        token_ids: ``[B, S]``; None where the model was called with embeddings.
    """

    batch_size: int
    length: int
    phase: int = _FORWARD
    token_mask: Tensor | None = None
    token_ids: Tensor | None = None

    @property
    def num_rows(self) -> int:
        """``B * S``."""
        return self.batch_size * self.length

    @property
    def decodes(self) -> bool:
        """Whether they are tokens one by one after others in a cache."""
        return self.phase == _DECODE


def token_rows(one: "Pass") -> TokenRows | None:
    """The tokens of a pass; None where its inputs don't say how many there are, as with images."""
    shape = _shape(one.inputs)
    if shape is None:
        return None
    batch_size, length = shape
    return TokenRows(batch_size, length, phase_of(one, length), _mask(one, batch_size, length), _ids(one, shape))


def phase_of(one: "Pass", length: int) -> int:
    """Without a cache, given or asked for, a plain forward; one token after others in the cache is decoding."""
    if one.past is None:
        return _PREFILL if one.prepares or _asks_for_cache(one) else _FORWARD
    return _DECODE if one.past > 0 and length == 1 else _PREFILL


def _asks_for_cache(one: "Pass") -> bool:
    """Whether the caller of the model asks for a cache; parts of the model are told by the model itself."""
    while one.outer is not None:
        one = one.outer
    return one.inputs.get("use_cache") is True


def _shape(inputs: Mapping[str, Any]) -> tuple[int, int] | None:
    ids = inputs.get("input_ids")
    if isinstance(ids, Tensor) and ids.ndim == 2:
        return ids.shape[0], ids.shape[1]
    for name in _EMBEDDED:
        values = inputs.get(name)
        if isinstance(values, Tensor) and values.ndim == 3:
            return values.shape[0], values.shape[1]
    return None


def _outwards(one: "Pass | None") -> Iterator[Mapping[str, Any]]:
    """The inputs of a pass, and of those around it as long as they speak of the same tokens."""
    while one is not None:
        # An encoder's tokens are not its decoder's, whatever their number.
        if "decoder_input_ids" in one.inputs or "decoder_inputs_embeds" in one.inputs:
            return
        yield one.inputs
        one = one.outer


def _ids(one: "Pass", shape: tuple[int, int]) -> Tensor | None:
    for inputs in _outwards(one):
        ids = inputs.get("input_ids")
        if isinstance(ids, Tensor) and tuple(ids.shape) == shape:
            return ids
    return None


def _mask(one: "Pass", batch_size: int, length: int) -> Tensor | None:
    """The mask that the pass got; where it is in a form that says nothing of padding, that of the pass around it."""
    for inputs in _outwards(one):
        mask = inputs.get("attention_mask")
        if isinstance(mask, Mapping):
            mask = next((mask[key] for key in _MASK_KEYS if key in mask), next(iter(mask.values()), None))
        if mask is None:
            return None
        if isinstance(mask, Tensor):
            return _real(mask, batch_size, length, one.past or 0)
    return None


def _real(mask: Tensor, batch_size: int, length: int, past: int) -> Tensor | None:
    """``[B, S]``, the positions that others may attend to."""
    if mask.ndim == 4:
        real = _attended(mask)
    elif mask.ndim == 2:
        real = mask != 0
    else:
        return None
    if real.shape[1] > length:
        # A cache's mask: of fixed length, or of all positions so far.
        start = min(past, real.shape[1] - length)
        real = real[:, start : start + length]
    if real.shape[0] == 1 and batch_size > 1:
        real = real.expand(batch_size, -1)
    return real if tuple(real.shape) == (batch_size, length) else None


def _attended(mask_BHQS: Tensor) -> Tensor:
    """``[B, S]`` of a mask by query and key: the keys that some query attends to.

    A query that attends to nothing would be NaN, so such masks let it attend to everything. These rows are passed
    over: under a causal mask only the last query attends to everything, and under none all do.
    """
    allowed_BQS = mask_BHQS[:, 0] if mask_BHQS.dtype == torch.bool else mask_BHQS[:, 0] >= 0
    everything_BQ = allowed_BQS.all(dim=2)
    opened_BQ = everything_BQ & ~everything_BQ.all(dim=1, keepdim=True)
    opened_BQ[:, -1] = False
    return (allowed_BQS & ~opened_BQ[:, :, None]).any(dim=1)


def documents(one: "Pass", rows: TokenRows) -> Tensor:
    """``[B, S]`` bool: True where a document begins inside of a packed sequence, besides the start of each row."""
    starts_BS = torch.zeros(rows.batch_size, rows.length, dtype=torch.bool)
    for inputs in _outwards(one):
        for name in ("cu_seq_lens_q", "cu_seqlens"):
            if isinstance(ends := inputs.get(name), Tensor):
                flat = starts_BS.view(-1)
                inside = ends[(ends > 0) & (ends < flat.shape[0])]
                flat[inside.cpu().long()] = True
                return starts_BS
        positions = inputs.get("position_ids")
        if isinstance(positions, Tensor):
            return _restarts(positions.cpu(), starts_BS)
        mask = inputs.get("attention_mask")
        if isinstance(mask, Tensor) and tuple(mask.shape) == tuple(starts_BS.shape) and not mask.is_floating_point():
            # Some packers number the documents of a row in the mask: 1, 1, 1, 2, 2, 0.
            starts_BS[:, 1:] = (mask[:, 1:] != mask[:, :-1]).cpu() & (mask[:, :-1] != 0).cpu()
            return starts_BS
    return starts_BS


def _restarts(positions: Tensor, starts_BS: Tensor) -> Tensor:
    """Where positions begin again from 0; of several kinds of positions (time, height, width), where all do."""
    if positions.ndim == 3:
        zero_BS = (positions == 0).all(dim=0)
    elif positions.ndim == 2:
        zero_BS = positions == 0
    else:
        return starts_BS
    if zero_BS.shape[-1] == starts_BS.shape[1]:
        starts_BS |= zero_BS
    return starts_BS


def positions_of(one: "Pass", layer_name: str, num_rows: int) -> Tensor | None:
    """``[n]`` bool: the positions of a pass that reach a layer, where text and vision have experts of their own."""
    types = one.inputs.get(_VISION_TYPES)
    if not isinstance(types, Tensor) or types.numel() != num_rows:
        return None
    vision_N = types.reshape(-1) != 0
    return vision_N if "vision" in layer_name.rsplit(".", 1)[-1] else ~vision_N
