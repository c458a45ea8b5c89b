"""What npu_moe_distribute_dispatch and combine check: arguments without a meaning here, and the hardware's limits."""

import torch
from torch import Tensor

from moegate.ascend.expert_parallel import ExpertParallel
from moegate.ascend.limits import INVALID, AscendOperatorError
from moegate.ascend.limits_rows import require, require_types
from moegate.parts import check_integer

_ALGORITHMS = ("", "fullmesh", "fullmesh_v1", "fullmesh_v2", "hierarchy")
_A2_WORLDS = (2, 3, 4, 5, 6, 7, 8, 16, 32, 64, 128, 256)


def check_unoffered(
    *,
    tp_world_size: int = 0,
    expert_shard_type: int = 0,
    comm_alg: str = "",
    comm_quant_mode: int = 0,
    **unused: object,
) -> None:
    """Raises for what is not offered; ``unused`` are arguments that must be None or 0.

    Example:
        >>> check_unoffered(tp_world_size=2)
        Traceback (most recent call last):
        moegate.ascend.limits.AscendOperatorError: ACLNN_ERR_PARAM_INVALID (161002): tp_world_size=2 is not offered: ...
    """
    if tp_world_size not in (0, 1):
        raise AscendOperatorError(
            INVALID,
            f"tp_world_size={tp_world_size} is not offered: there is no tensor-parallel group here. Leave it 0.",
        )
    if expert_shard_type != 0:
        raise AscendOperatorError(
            INVALID, f"expert_shard_type must be 0, shared experts on the first ranks; got {expert_shard_type}."
        )
    if comm_alg not in _ALGORITHMS:
        raise AscendOperatorError(
            INVALID, f"comm_alg must be one of {', '.join(map(repr, _ALGORITHMS))}; got {comm_alg!r}."
        )
    if comm_quant_mode != 0:
        raise AscendOperatorError(
            INVALID, f"comm_quant_mode={comm_quant_mode} is not offered: rows travel as they are. Leave it 0."
        )
    for name, value in unused.items():
        if isinstance(value, Tensor) or value not in (None, 0):
            raise AscendOperatorError(INVALID, f"{name} is not offered here, nor used by the device: leave it out.")


def check_special_numbers(**numbers: object) -> None:
    """Raises unless the numbers of special experts are integers from 0 on.

    Example:
        >>> check_special_numbers(zero_expert_num=-1)
        Traceback (most recent call last):
        ValueError: zero_expert_num must be at least 0, got -1.
    """
    for name, number in numbers.items():
        check_integer(name, number, least=0)


def check_limits(
    operator: str, shape: torch.Size, expert_ids: Tensor, layout: ExpertParallel, x_active_mask: Tensor | None
) -> None:
    """Raises, in strict mode, for what neither the Atlas A2 nor the A3 takes.

    Args:
        operator: its name, for the error.
        shape: ``(BS, H)`` of the tokens.
        expert_ids: ``[BS, K]``.
        layout: the ranks and their experts.
        x_active_mask: which tokens take part.
    """
    require_types(operator, (torch.int32,), expert_ids=expert_ids)
    num_tokens, top_k = expert_ids.shape
    require(0 < top_k <= 16, operator, "1 to 16 experts per token", top_k)
    most_experts = 1024 if operator.endswith("_v2") else 512
    require(layout.moe_expert_num <= most_experts, operator, f"at most {most_experts} experts", layout.moe_expert_num)
    sorted_ids = expert_ids.sort(dim=1).values
    distinct = bool((sorted_ids.diff(dim=1) != 0).all())
    require(distinct, operator, "experts that differ within a token", "a token that names one twice", INVALID)
    if x_active_mask is not None and x_active_mask.ndim == 1:
        in_front = not bool((x_active_mask[1:] & ~x_active_mask[:-1]).any())
        require(in_front, operator, "active tokens in front of the others only", "another order", INVALID)
    refusals = {"A2": _refusal_a2(num_tokens, shape[1], layout), "A3": _refusal_a3(num_tokens, shape[1], layout)}
    if all(refusals.values()):
        takes = "; ".join(f"on the {machine} {refusal}" for machine, refusal in refusals.items())
        require(False, operator, takes, f"BS, H = {num_tokens}, {shape[1]} and {layout}")


def _refusal_a2(num_tokens: int, hidden_size: int, layout: ExpertParallel) -> str:
    """What the A2 would take instead; nothing when it takes this."""
    checks = {
        "1 to 512 tokens": 0 < num_tokens <= 512,
        "a hidden size up to 10240 that 32 divides": 0 < hidden_size <= 10240 and hidden_size % 32 == 0,
        f"a world of {', '.join(map(str, _A2_WORLDS))} ranks": layout.world_size in _A2_WORLDS,
        "no shared experts": layout.shared_expert_rank_num == 0,
    }
    return ", ".join(limit for limit, fits in checks.items() if not fits)


def _refusal_a3(num_tokens: int, hidden_size: int, layout: ExpertParallel) -> str:
    checks = {
        "1 to 512 tokens": 0 < num_tokens <= 512,
        "a hidden size from 1024 to 8192": 1024 <= hidden_size <= 8192,
        "a world of 2 to 768 ranks": 2 <= layout.world_size <= 768,
        "at most 2048 experts per rank times ranks": layout.experts_per_rank * layout.world_size <= 2048,
        "0 to 4 shared experts": layout.shared_expert_num <= 4,
    }
    return ", ".join(limit for limit, fits in checks.items() if not fits)
