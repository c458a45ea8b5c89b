"""Every documented error: what has no meaning is always refused, what only the devices forbid when ``strict``."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from moegate.ascend import (
    AscendOperatorError,
    moe_fused_topk,
    npu_moe_gating_top_k,
    npu_moe_gating_top_k_backward,
    npu_moe_gating_top_k_softmax,
    npu_moe_gating_top_k_softmax_v2,
)

X = torch.randn(3, 16)
IDS, TABLE = torch.tensor([0, 1, 1]), torch.tensor([[1, 2], [3, 4]])
HASH = {"input_ids": IDS, "tid2eid": TABLE}
Call = Callable[[], Any]


def gate(x: Any = X, k: Any = 2, **given: Any) -> Call:
    return lambda: npu_moe_gating_top_k(x, k, **given)


def fused(
    x: Any = X, add_num: Any = None, mapping: Any = (None, None), sizes: Any = (4, 2, 2, 4), **given: Any
) -> Call:
    add_num = torch.zeros(x.shape[-1]) if add_num is None else add_num
    return lambda: moe_fused_topk(x, add_num, *mapping, *sizes, **given)


def backward(**given: Any) -> Call:
    plain = {"x_norm": torch.rand(3, 16), "grad_y": torch.ones(3, 2), "expert_idx": torch.tensor([[0, 1]] * 3)}
    return lambda: npu_moe_gating_top_k_backward(**{**plain, "norm_type": 1, **given})


def softmax(x: Any = X, finished: Any = None, k: Any = 2, **given: Any) -> Call:
    return lambda: npu_moe_gating_top_k_softmax(x, finished, k, **given)


def softmax_v2(x: Any = X, **given: Any) -> Call:
    return lambda: npu_moe_gating_top_k_softmax_v2(x, **given)


MEANINGLESS: dict[str, tuple[Call, int, str]] = {
    "x of integers": (gate(X.long()), 161002, "x must be floating point, got torch.int64"),
    "x 1-D": (gate(X[0]), 161002, r"x must be 2-D, got the shape \(16,\)"),
    "x 3-D": (gate(X[None]), 161002, "x must be 2-D"),
    "no experts": (gate(torch.zeros(2, 0), 1), 561002, "k must be from 1 to the 0 experts"),
    "k 0": (gate(k=0), 561002, "k must be from 1 to the 16 experts of 1 groups, got 0"),
    "k beyond the experts": (gate(k=17), 561002, "got 17"),
    "k beyond the kept": (gate(k=5, k_group=1, group_count=4), 561002, "the 4 experts of 1 groups, got 5"),
    "k_group 0": (gate(k_group=0, group_count=4), 561002, "k_group must be from 1 to group_count=4, got 0"),
    "k_group beyond": (gate(k_group=5, group_count=4), 561002, "got 5"),
    "group_count 0": (gate(group_count=0), 561002, "group_count must be at least 1, got 0"),
    "uneven groups": (gate(group_count=3), 561002, "16 experts don't divide into group_count=3"),
    "group_select_mode": (gate(group_select_mode=2), 561002, "group_select_mode must be 0 or 1, got 2"),
    "norm_type": (gate(norm_type=3), 561002, "norm_type must be 0, 1 or 2, got 3"),
    "renorm": (gate(renorm=2), 561002, "renorm must be 0 or 1, got 2"),
    "eps": (gate(eps=-1.0), 561002, "eps must not be negative or NaN"),
    "eps NaN": (gate(eps=math.nan), 561002, "eps must not be negative or NaN"),
    "scale NaN": (gate(routed_scaling_factor=math.nan), 561002, "routed_scaling_factor must be a number"),
    "bias shape": (gate(bias=torch.zeros(15)), 161002, r"so \(16,\); got \(15,\)"),
    "bias 2-D": (gate(bias=torch.zeros(1, 16)), 161002, "bias must be 1-D"),
    "bias of integers": (gate(bias=torch.zeros(16).long()), 161002, "bias must be floating point"),
    "bias elsewhere": (gate(bias=torch.zeros(16, device="meta")), 161002, "bias is on meta and x on cpu"),
    "ids alone": (gate(input_ids=IDS), 161001, "must be both provided or both omitted"),
    "table alone": (gate(tid2eid=TABLE), 161001, "must be both provided or both omitted"),
    "ids shape": (gate(**{**HASH, "input_ids": IDS[:2]}), 161002, r"so \(3,\); got \(2,\)"),
    "ids dtype": (gate(**{**HASH, "input_ids": IDS.short()}), 161002, "input_ids must be int32 or int64"),
    "ids beyond": (gate(**{**HASH, "input_ids": IDS + 1}), 161002, r"input_ids must lie in 0\.\.1"),
    "ids negative": (gate(**{**HASH, "input_ids": IDS - 1}), 161002, "values from -1 to 0"),
    "table width": (gate(k=3, **HASH), 161002, r"tid2eid must be \[ids, k=3\], got \(2, 2\)"),
    "table rank": (gate(**{**HASH, "tid2eid": TABLE[0]}), 161002, "tid2eid must be"),
    "table dtype": (gate(**{**HASH, "tid2eid": TABLE.float()}), 161002, "tid2eid must be int32 or int64"),
    "table beyond": (gate(**{**HASH, "tid2eid": TABLE * 5}), 161002, r"tid2eid must lie in 0\.\.15"),
    "table elsewhere": (gate(**{**HASH, "tid2eid": TABLE.to("meta")}), 161002, "tid2eid is on meta"),
    "backward norm_type": (backward(norm_type=3), 561002, "norm_type must be 0, 1 or 2"),
    "backward renorm": (backward(renorm=-1), 561002, "renorm must be 0 or 1"),
    "backward shapes": (backward(grad_y=torch.ones(3, 3)), 161002, r"both be \[3, k\]"),
    "backward rows": (backward(x_norm=torch.rand(2, 16)), 161002, r"both be \[2, k\]"),
    "backward k": (
        backward(x_norm=torch.rand(3, 1), expert_idx=torch.zeros(3, 2).long()),
        561002,
        "k must be from 1 to 1, got 2",
    ),
    "backward grad": (backward(grad_y=torch.ones(3, 2).long()), 161002, "grad_y must be floating point"),
    "backward index": (backward(expert_idx=torch.ones(3, 2)), 161002, "expert_idx must be int32"),
    "backward range": (backward(expert_idx=torch.full((3, 2), 16)), 161002, r"expert_idx must lie in 0\.\.15"),
    "softmax rank": (softmax(X[None, None]), 161002, "x must be 2-D or 3-D"),
    "softmax k": (softmax(k=17), 161002, "k must be from 0 to the 16 experts, got 17"),
    "softmax k negative": (softmax_v2(k=-1), 161002, "got -1"),
    "finished dtype": (softmax(finished=torch.ones(3)), 161002, "finished must be bool, got torch.float32"),
    "finished shape": (softmax_v2(finished=torch.ones(4).bool()), 161002, r"so \(3,\); got \(4,\)"),
    "finished elsewhere": (softmax(finished=torch.ones(3, device="meta").bool()), 161002, "finished is on meta"),
    "v2 renorm": (softmax_v2(renorm=2), 561002, "renorm must be 0 or 1, got 2"),
    "fused groups": (fused(sizes=(3, 1, 1, 1)), 161002, "16 experts don't divide into group_num=3"),
    "fused no groups": (fused(sizes=(0, 1, 1, 1)), 161002, "group_num=0"),
    "fused group_topk": (fused(sizes=(4, 5, 1, 1)), 161002, "group_topk must be from 1 to 4, got 5"),
    "fused top_n": (fused(sizes=(4, 1, 5, 1)), 161002, "top_n must be from 1 to 4, got 5"),
    "fused top_k": (fused(sizes=(4, 1, 1, 17)), 161002, "top_k must be from 1 to 16, got 17"),
    "fused activation": (fused(activate_type=1), 161002, "activate_type must be 0, the sigmoid; got 1"),
    "fused add_num": (fused(add_num=torch.zeros(3)), 161002, "add_num must be 1-D"),
    "fused no mapping": (fused(enable_expert_mapping=True), 161001, "needs both mapping_num and mapping_table"),
    "fused mapping dtype": (
        fused(mapping=(torch.ones(16), torch.ones(16, 2).int()), enable_expert_mapping=True),
        161002,
        "mapping_num must be int32",
    ),
    "fused mapping shape": (
        fused(mapping=(torch.ones(15).int(), torch.ones(16, 2).int()), enable_expert_mapping=True),
        161002,
        r"so \(16,\); got \(15,\)",
    ),
    "fused table shape": (
        fused(mapping=(torch.ones(16).int(), torch.ones(15, 2).int()), enable_expert_mapping=True),
        161002,
        r"mapping_table must be \[16, replicas\]",
    ),
    "fused mapping range": (
        fused(mapping=(torch.full((16,), 3).int(), torch.ones(16, 2).int()), enable_expert_mapping=True),
        161002,
        "names 3 replicas, but mapping_table has 2 columns",
    ),
}


@pytest.mark.parametrize("name", MEANINGLESS)
def test_what_has_no_meaning_is_refused(name: str) -> None:
    call, code, sentence = MEANINGLESS[name]
    with pytest.raises(AscendOperatorError, match=sentence) as caught:
        call()
    assert caught.value.code == code
    assert str(caught.value).startswith("ACLNN_ERR_")
    assert isinstance(caught.value, RuntimeError)


MANY = torch.randn(2, 2049)
BEYOND: dict[str, tuple[Callable[..., Any], int, str]] = {
    "float64": (lambda **s: npu_moe_gating_top_k(X.double(), 2, **s), 161002, "x must be float16, bfloat16 or float32"),
    "no rows": (lambda **s: npu_moe_gating_top_k(X[:0], 2, **s), 561002, "x must not be empty"),
    "experts": (lambda **s: npu_moe_gating_top_k(MANY, 2, **s), 561002, "at most 2048 experts, got 2049"),
    "bias dtype": (
        lambda **s: npu_moe_gating_top_k(X, 2, bias=torch.zeros(16).bfloat16(), **s),
        161002,
        "bias must be torch.float32 like x, got torch.bfloat16",
    ),
    "top 2 of one": (
        lambda **s: npu_moe_gating_top_k(X, 2, k_group=2, group_count=16, group_select_mode=1, **s),
        561002,
        "needs at least 2 experts a group, even where it selects nothing; got 1",
    ),
    "padded groups": (
        lambda **s: npu_moe_gating_top_k(MANY[:, :2048][:, :1040], 2, k_group=2, group_count=80, **s),
        561002,
        "rounded up to 32, must be at most 2048; got 2560",
    ),
    "hash k": (
        lambda **s: npu_moe_gating_top_k(
            MANY[:, :128], 65, input_ids=IDS[:2], tid2eid=torch.arange(65).expand(2, 65), **s
        ),
        561002,
        "k must be at most 64 with tid2eid, got 65",
    ),
    "hash groups": (
        lambda **s: npu_moe_gating_top_k(X, 2, k_group=1, group_count=2, **HASH, **s),
        561002,
        "tid2eid goes without groups",
    ),
    "backward of the softmax": (lambda **s: backward(norm_type=0, **s)(), 561002, "norm_type must be 1"),
    "backward of one expert": (
        lambda **s: backward(
            x_norm=torch.rand(3, 1), grad_y=torch.ones(3, 1), expert_idx=torch.zeros(3, 1).int(), **s
        )(),
        561002,
        "from 2 to 2048 experts, got 1",
    ),
    "backward of many": (lambda **s: backward(x_norm=torch.rand(3, 2049), **s)(), 561002, "got 2049"),
    "backward dtype": (lambda **s: backward(x_norm=torch.rand(3, 16).half(), **s)(), 161002, "must be float32"),
    "backward grad": (lambda **s: backward(grad_y=torch.ones(3, 2).double(), **s)(), 161002, "grad_y must be float16"),
    "backward empty": (
        lambda **s: backward(
            x_norm=torch.rand(0, 16), grad_y=torch.ones(0, 2), expert_idx=torch.zeros(0, 2).int(), **s
        )(),
        561002,
        "x_norm must not be empty",
    ),
    "softmax k": (lambda **s: softmax(MANY, k=1025, **s)(), 161002, "k must be at most 1024, got 1025"),
    "softmax dtype": (lambda **s: softmax_v2(X.double(), k=2, **s)(), 161002, "x must be float16"),
    "fused experts": (
        lambda **s: fused(MANY[:, :1028], sizes=(4, 1, 1, 1), **s)(), 161002, "at most 1024 experts, got 1028",
    ),
    "fused groups": (lambda **s: fused(MANY[:, :512], sizes=(512, 1, 1, 1), **s)(), 161002, "at most 256, got 512"),
    "fused add_num": (lambda **s: fused(add_num=torch.zeros(16).half(), **s)(), 161002, "add_num must be torch"),
    "fused dtype": (lambda **s: fused(X.double(), add_num=torch.zeros(16), **s)(), 161002, "x must be float16"),
    "fused mapping": (
        lambda **s: fused(
            mapping=(torch.ones(16).int(), torch.ones(16, 129).int()), enable_expert_mapping=True, **s
        )(),
        161002,
        "at most 128 columns, got 129",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BEYOND)
def test_what_the_devices_forbid_is_refused_when_strict_and_computed_otherwise(name: str) -> None:
    call, code, sentence = BEYOND[name]
    with pytest.raises(AscendOperatorError, match=sentence) as caught:
        call(strict=True)
    assert caught.value.code == code
    assert str(caught.value).endswith("Without strict=True it is computed here.")
    assert call() is not None


WITHIN: dict[str, Callable[..., Any]] = {
    "2048 experts": lambda: npu_moe_gating_top_k(MANY[:, :2048], 8, strict=True),
    "padding that fits": lambda: npu_moe_gating_top_k(MANY[:, :1280], 2, k_group=3, group_count=64, strict=True),
    "many groups that select nothing": lambda: npu_moe_gating_top_k(
        MANY[:, :1040], 2, k_group=80, group_count=80, group_select_mode=1, strict=True
    ),
    "bfloat16": lambda: npu_moe_gating_top_k(X.bfloat16(), 2, bias=torch.zeros(16).bfloat16(), strict=True),
    "hash": lambda: npu_moe_gating_top_k(X, 2, **HASH, strict=True),
    "softmax": softmax(MANY, k=1024, strict=True),
    "softmax empty": softmax(X[:0], k=0, strict=True),
    "backward": backward(strict=True),
    "fused": fused(MANY[:, :1024], sizes=(256, 9, 2, 8), strict=True),
}


@pytest.mark.parametrize("name", WITHIN)
def test_what_lies_on_the_limit_is_accepted(name: str) -> None:
    outputs = WITHIN[name]()
    assert all(isinstance(output, torch.Tensor) for output in (outputs if isinstance(outputs, tuple) else (outputs,)))


WRONG_TYPES: dict[str, tuple[Call, str]] = {
    "x": (gate([[1.0]]), "x must be a tensor of logits, got list"),
    "k": (gate(k=2.0), "k must be an integer, got 2.0"),
    "k bool": (gate(k=True), "k must be an integer, got True"),
    "renorm": (gate(renorm=True), "renorm must be an integer, got True"),
    "bias": (gate(bias=[0.0] * 16), "bias must be a tensor"),
    "eps": (gate(eps="0"), "eps must be a number, got '0'"),
    "scale": (gate(routed_scaling_factor=None), "routed_scaling_factor must be a number, got None"),
    "grad_y": (backward(grad_y=None), r"grad_y must be a tensor \[T, k\], got NoneType"),
    "finished": (softmax(finished=[True] * 3), "finished must be a bool tensor"),
    "softmax x": (softmax_v2(None), "x must be a tensor of logits, got NoneType"),
    "softmax k": (softmax(k="2"), "k must be an integer"),
    "v2 renorm": (softmax_v2(renorm=1.0), "renorm must be an integer"),
    "v2 renorm bool": (softmax_v2(renorm=False), "renorm must be an integer, got False"),
    "v2 output_softmax": (softmax_v2(output_softmax=1), "output_softmax must be true or false"),
    "scale bool": (gate(routed_scaling_factor=True), "routed_scaling_factor must be a number, got True"),
    "scale list": (gate(routed_scaling_factor=[1.0]), r"routed_scaling_factor must be a number, got \[1.0\]"),
    "k list": (gate(k=[2]), r"k must be an integer, got \[2\]"),
    "out_flag": (gate(out_flag="no"), "out_flag must be true or false, got 'no'"),
    "input_ids": (gate(input_ids=[0] * 3, tid2eid=TABLE), "input_ids must be a tensor of int32 or int64, got list"),
    "tid2eid": (gate(input_ids=IDS, tid2eid=[[0, 1]]), "tid2eid must be a tensor of int32 or int64, got list"),
    "compat": (gate(compat="ascend"), "compat must be a moegate.ascend.Compat"),
    "softmax compat": (softmax(compat=None), "compat must be a moegate.ascend.Compat"),
    "v2 compat": (softmax_v2(compat=None), "compat must be a moegate.ascend.Compat"),
    "fused compat": (fused(compat="ascend"), "compat must be a moegate.ascend.Compat"),
    "fused mapping": (
        fused(mapping=([1] * 16, torch.zeros(16, 2, dtype=torch.int32)), enable_expert_mapping=True),
        "mapping_num must be a tensor of int32 or int64, got list",
    ),
    "fused enable_expert_mapping": (fused(enable_expert_mapping=1), "enable_expert_mapping must be true or false"),
    "expert_idx": (backward(expert_idx=[[0, 1]] * 3), "expert_idx must be a tensor of int32 or int64, got list"),
    "fused top_k": (fused(sizes=(4, 2, 2, 4.0)), "top_k must be an integer"),
    "fused is_norm": (fused(is_norm=1), "is_norm must be true or false"),
    "fused scale": (fused(scale="1"), "scale must be a number"),
}


def test_a_bool_is_no_number_where_its_equal_was_seen_before() -> None:
    npu_moe_gating_top_k(X, 1, renorm=1, routed_scaling_factor=1.0)
    for name in ("renorm", "routed_scaling_factor"):
        with pytest.raises(TypeError, match=f"{name} must be"):
            npu_moe_gating_top_k(X, 1, **{"renorm": 1, name: True})


def test_the_backward_refuses_tensors_of_another_device() -> None:
    for name, values in (("expert_idx", torch.zeros(3, 2, dtype=torch.int32)), ("grad_y", torch.ones(3, 2))):
        with pytest.raises(AscendOperatorError, match=f"{name} is on meta and x"):
            backward(**{name: values.to("meta")})()


def test_a_mapping_without_values_is_not_looked_at() -> None:
    x = torch.empty(3, 16, device="meta")
    mapping = (x.new_empty(16, dtype=torch.int32), x.new_empty(16, 2, dtype=torch.int32))
    y, indices = moe_fused_topk(x, x[0], *mapping, 4, 2, 2, 4, enable_expert_mapping=True)
    assert y.shape == indices.shape == (3, 4)


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_what_is_of_another_type_is_a_type_error(name: str) -> None:
    call, sentence = WRONG_TYPES[name]
    with pytest.raises(TypeError, match=sentence):
        call()
