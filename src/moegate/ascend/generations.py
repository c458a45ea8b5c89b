"""Which releases of CANN, on which devices, accept a gate: the documented limits, as checks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from moegate.ascend.gate_calls import GateCall
from moegate.ascend.moe_gating_top_k import MAX_EXPERTS, MAX_HASH_K
from moegate.ascend.moe_gating_top_k_softmax import MAX_K

Refusals = Callable[[GateCall], Iterator[str]]
_V2 = "npu_moe_gating_top_k_softmax_v2"
_SORT_WIDTH = 32


@dataclass(frozen=True)
class Generation:
    """A release and the devices it is for; ``refusals`` gives a reason for each thing in a call that it refuses."""

    name: str
    devices: str
    refusals: Refusals


@dataclass(frozen=True)
class Acceptance:
    """Whether a generation accepts a gate, and if not, why."""

    generation: str
    devices: str
    reasons: tuple[str, ...]

    @property
    def accepted(self) -> bool:
        """Whether there is no reason against it."""
        return not self.reasons


def _limits(call: GateCall) -> Iterator[str]:
    """What every release forbids."""
    if call.operator == _V2:
        if call.k > MAX_K:
            yield f"k={call.k} exceeds {MAX_K}"
        return
    group_size = call.num_experts // call.group_count
    if call.num_experts > MAX_EXPERTS:
        yield f"{call.num_experts} experts exceed {MAX_EXPERTS}"
    if group_size <= call.group_select_mode:
        yield f"groups of {group_size} have no top two"
    padded = call.group_count * -(-group_size // _SORT_WIDTH) * _SORT_WIDTH
    if call.grouped and padded > MAX_EXPERTS:
        yield f"groups padded to 32 make {padded} experts, more than {MAX_EXPERTS}"
    if call.hashed and call.k > MAX_HASH_K:
        yield f"k={call.k} exceeds {MAX_HASH_K} in the hash mode"


def _early(call: GateCall) -> Iterator[str]:
    """The one shape of DeepSeek-V3."""
    if call.operator == _V2:
        yield f"{_V2} is not in its documentation; npu_moe_gating_top_k_softmax is"
        return
    if call.hashed:
        yield "it has no hash mode"
    if call.num_experts != 256:
        yield f"it takes 256 experts only, not {call.num_experts}"
    if (call.group_count, call.k_group) != (8, 4):
        yield f"it takes group_count=8 and k_group=4 only, not {call.group_count} and {call.k_group}"
    if call.k > 32:
        yield f"k={call.k} exceeds 32"
    if call.norm_type != 1 or call.group_select_mode != 1:
        yield "it takes the sigmoid with groups by their top two only"
    if not call.biased:
        yield "it needs a bias: pass zeros"
    if call.out_flag:
        yield "it takes out_flag=False only"


def _general(call: GateCall) -> Iterator[str]:
    """Any number of experts, but no renorm."""
    yield from _limits(call)
    if call.hashed:
        yield "it has no hash mode"
    if call.operator != _V2 and call.renorm == 1:
        yield "renorm is: 1, but currently only support 0"
    if call.norm_type == 2:
        yield "norm_type=2 is refused"


def _newest(call: GateCall) -> Iterator[str]:
    yield from _limits(call)
    if call.norm_type == 2 and call.group_count != 1:
        yield "norm_type=2 needs group_count=1"


def _softmax_only(call: GateCall) -> Iterator[str]:
    """Inference cards: version 1 of the softmax gate, in half precision."""
    if call.operator != _V2 and (call.norm_type != 0 or call.grouped or call.biased or call.hashed):
        yield "it has no npu_moe_gating_top_k, and npu_moe_gating_top_k_softmax knows no sigmoid, bias or groups"
        return
    if call.num_experts % 16 or call.num_experts > 256:
        yield f"the number of experts must be a multiple of 16 up to 256, not {call.num_experts}"
    yield "it has npu_moe_gating_top_k_softmax only, in float16: divide and scale its weights in PyTorch"


GENERATIONS: tuple[Generation, ...] = (
    Generation("before CANN 8.3.RC1 (documentation of torch_npu 7.0)", "A2, A3", _early),
    Generation("CANN 8.3.RC1 to ops-transformer of December 2025", "A2, A3", _general),
    Generation("ops-transformer of August 2026", "A2, A3", _newest),
    Generation("ops-transformer of August 2026", "950", _limits),
    Generation("any", "310P", _softmax_only),
)
"""From the oldest to the newest, then the inference card."""


def accepted_by(call: GateCall) -> tuple[Acceptance, ...]:
    """What each generation says to a gate.

    Example:
        >>> call = GateCall("npu_moe_gating_top_k", 128, 8, renorm=1)
        >>> [(one.devices, one.accepted) for one in accepted_by(call)]
        [('A2, A3', False), ('A2, A3', False), ('A2, A3', True), ('950', True), ('310P', False)]
    """
    return tuple(Acceptance(one.name, one.devices, tuple(one.refusals(call))) for one in GENERATIONS)
