"""The attributes of npu_moe_init_routing_v2: what its numbers mean, and what is checked of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moegate.ascend.limits import INVALID, AscendOperatorError
from moegate.ascend.limits_rows import (
    FLOATS,
    check_float,
    check_index,
    check_mode,
    check_tensor,
    require,
    require_types,
)
from moegate.parts import check_bool, check_integer, check_positive_integer

NAME = "npu_moe_init_routing_v2"
NO_QUANTIZATION, STATIC, DYNAMIC = -1, 0, 1
GATHER, SCATTER = 0, 1
CUMULATIVE, COUNT, KEY_VALUE = 0, 1, 2
DROPLESS, DROP_PAD = 0, 1


@dataclass(frozen=True)
class Attributes:
    """The attributes as they were passed; see ``npu_moe_init_routing_v2``.

    Example:
        >>> attributes = Attributes(
        ...     active_num=-1, expert_capacity=-1, expert_num=8, drop_pad_mode=0, expert_tokens_num_type=1,
        ...     expert_tokens_num_flag=True, quant_mode=-1, active_expert_range=(2, 6), row_idx_type=0)
        >>> attributes.start, attributes.end, attributes.num_rows(num_slots=20)
        (2, 6, 20)
    """

    active_num: int
    expert_capacity: int
    expert_num: int
    drop_pad_mode: int
    expert_tokens_num_type: int
    expert_tokens_num_flag: bool
    quant_mode: int
    active_expert_range: Sequence[int]
    row_idx_type: int

    @property
    def start(self) -> int:
        """The first active expert."""
        return self.active_expert_range[0] if self.active_expert_range else 0

    @property
    def end(self) -> int:
        """The expert behind the last active one."""
        return self.active_expert_range[1] if self.active_expert_range else self.expert_num

    @property
    def num_experts(self) -> int:
        """``E``: where none is passed, the end of the range."""
        return self.end if self.expert_num < 0 else self.expert_num

    @property
    def capacity(self) -> int | None:
        """The rows of each expert in drop-pad mode, None in dropless mode."""
        return self.expert_capacity if self.drop_pad_mode == DROP_PAD else None

    def num_rows(self, num_slots: int) -> int:
        """The rows that are given."""
        if self.capacity is not None:
            return self.num_experts * self.capacity
        return min(self.active_num, num_slots) if self.active_num > 0 else num_slots

    def check(self) -> None:
        """Raises unless the attributes go together."""
        for name in ("active_num", "expert_capacity", "expert_num"):
            check_integer(name, getattr(self, name), least=-1)
        check_mode("drop_pad_mode", self.drop_pad_mode, (DROPLESS, DROP_PAD))
        check_mode("expert_tokens_num_type", self.expert_tokens_num_type, (CUMULATIVE, COUNT, KEY_VALUE))
        check_mode("row_idx_type", self.row_idx_type, (GATHER, SCATTER))
        check_bool("expert_tokens_num_flag", self.expert_tokens_num_flag)
        if isinstance(self.quant_mode, bool) or self.quant_mode not in (NO_QUANTIZATION, STATIC, DYNAMIC):
            raise AscendOperatorError(
                INVALID,
                f"quant_mode must be -1 (none), 0 (static int8) or 1 (dynamic int8), got {self.quant_mode!r}: "
                "the 8-bit and 4-bit floats of the Ascend 950 are not offered.",
            )
        self._check_range()
        if self.drop_pad_mode == DROP_PAD:
            self._check_drop_pad()

    def _check_range(self) -> None:
        if not isinstance(self.active_expert_range, list | tuple):
            raise TypeError(f"active_expert_range must be a list [start, end], got {self.active_expert_range!r}.")
        bounds = tuple(self.active_expert_range)
        for bound in bounds:
            check_integer("A bound of active_expert_range", bound)
        if len(bounds) not in (0, 2):
            raise AscendOperatorError(INVALID, f"active_expert_range must be [start, end], got {list(bounds)}.")
        if not bounds and self.expert_num < 0:
            raise AscendOperatorError(
                INVALID, "Pass expert_num, or active_expert_range=[start, end]: one of them says which experts."
            )
        if not 0 <= self.start <= self.end <= self.num_experts:
            raise AscendOperatorError(
                INVALID,
                f"active_expert_range must lie in [0, expert_num={self.num_experts}] and not end before it starts; "
                f"got {list(bounds)}.",
            )

    def _check_drop_pad(self) -> None:
        check_positive_integer("expert_capacity, in drop-pad mode,", self.expert_capacity)
        if (self.start, self.end) != (0, self.num_experts):
            raise AscendOperatorError(
                INVALID,
                f"Drop-pad mode takes all experts: active_expert_range must be [0, {self.num_experts}], "
                f"got {list(self.active_expert_range)}.",
            )
        if self.row_idx_type != GATHER:
            raise AscendOperatorError(INVALID, "Drop-pad mode gives the row of each slot only: row_idx_type must be 0.")


def check_inputs(
    x: Tensor, expert_idx: Tensor, scale: Tensor | None, offset: Tensor | None, attributes: Attributes
) -> None:
    """Raises unless the tensors fit each other and the attributes."""
    check_tensor("x", x, "tokens", "hidden size")
    check_index("expert_idx", expert_idx, x.shape[0], "experts per token")
    for name, value in (("scale", scale), ("offset", offset)):
        if value is not None:
            check_float(name, value)
    quantized = attributes.quant_mode != NO_QUANTIZATION
    if quantized and not x.is_floating_point():
        raise TypeError(f"quant_mode={attributes.quant_mode} quantises floating-point rows, but x is {x.dtype}.")
    if attributes.quant_mode == STATIC:
        check_tensor("scale, for static quantisation,", scale, 1)
        check_tensor("offset, for static quantisation,", offset, 1)
        return
    if offset is not None:
        raise AscendOperatorError(INVALID, "offset belongs to static quantisation, quant_mode=0: leave it None.")
    if scale is not None and not quantized:
        check_tensor("scale, one per token,", scale, x.shape[0])
    if scale is not None and quantized:
        width = attributes.end - attributes.start
        rows = 1 if scale.ndim == 2 and scale.shape[0] == 1 else width
        check_tensor(f"scale, for dynamic quantisation of {width} experts,", scale, rows, x.shape[1])


def check_limits(x: Tensor, expert_idx: Tensor, scale: Tensor | None, attributes: Attributes) -> None:
    """Raises, in strict mode, for what the hardware does not take."""
    require_types(NAME, (*FLOATS, torch.int8), x=x)
    require_types(NAME, (torch.int32,), expert_idx=expert_idx)
    require_types(NAME, (torch.float32,), scale=scale)
    key_value = attributes.expert_tokens_num_type == KEY_VALUE
    most = 5120 if key_value else 10240
    wanted = f"expert_num from 0 to {most}" + (" for pairs of expert and count" if key_value else "")
    require(0 <= attributes.expert_num <= most, NAME, wanted, attributes.expert_num)
    if expert_idx.numel():
        greatest = int(expert_idx.max())
        require(greatest < attributes.expert_num, NAME, "expert ids below expert_num", greatest)
    if attributes.capacity is not None:
        require(attributes.capacity <= x.shape[0], NAME, "a capacity up to the number of tokens", attributes.capacity)
        counts_fit = attributes.expert_tokens_num_type == COUNT or not attributes.expert_tokens_num_flag
        require(counts_fit, NAME, "only counts, expert_tokens_num_type=1, in drop-pad mode", "another type")
