"""What users of the operators ran into, as checks: each speaks up when a model is about to run into it too."""

from collections.abc import Iterator
from dataclasses import dataclass

from moegate.ascend.gate_calls import GateCall
from moegate.rule import RoutingRule


@dataclass(frozen=True)
class Watch:
    """One thing to watch, and where it was reported."""

    topic: str
    sentence: str
    source: str


@dataclass(frozen=True)
class Subject:
    """What the complaints look at: the rule, its gate, the dtype of the configuration, experts without weights."""

    rule: RoutingRule
    call: GateCall
    dtype: str | None = None
    without_weights: int = 0


_OP_PLUGIN = "Ascend/op-plugin"
_VLLM, _SGLANG = "vllm-project/vllm-ascend", "sgl-project/sglang"


def watch(subject: Subject) -> tuple[Watch, ...]:
    """Everything that fits a model, the most specific first."""
    return tuple(
        found
        for complaint in (_score, _normalisation, _renorm, _scale, _experts, _precision, _release, _layout, _padding)
        for found in complaint(subject)
    )


def _score(subject: Subject) -> Iterator[Watch]:
    call = subject.call
    if call.norm_type == 1:
        yield Watch(
            "score",
            "The router scores by a sigmoid. The softmax gates run as well and give other experts: one model scored "
            "16.5 % instead of 95.5 %.",
            f"{_SGLANG} #17695",
        )
    if call.norm_type == 0 and call.grouped:
        yield Watch(
            "score",
            "The router has groups and a softmax: pass norm_type=0. Integrations have taken groups for a sign of the "
            "sigmoid.",
            f"{_SGLANG} #29042",
        )
    if call.norm_type == 2:
        yield Watch(
            "score",
            "The kernel of the 950 computes sqrt(ln(1 + exp(x))) as it stands: infinite above 88.7, 0 below -16.6. On "
            "A2 and A3 only the newest releases document norm_type=2; vLLM-Ascend has an operator of its own.",
            "CANN ops-transformer",
        )


def _normalisation(subject: Subject) -> Iterator[Watch]:
    if subject.call.out_flag:
        yield Watch(
            "sigmoid without normalisation",
            "The operator always divides these scores by their sum. The weights are gathered from out, so out_flag "
            "must be True: without it, out is memory as it was.",
            "CANN ops-transformer",
        )
    elif subject.call.k == 1 and (subject.call.norm_type > 0 or subject.call.renorm == 1):
        yield Watch(
            "one expert",
            "Divided by its own sum, the single weight is the factor whatever the logits are: the router learns "
            "nothing from it.",
            "CANN ops-transformer",
        )


def _renorm(subject: Subject) -> Iterator[Watch]:
    if subject.call.operator == "npu_moe_gating_top_k" and subject.call.renorm == 1:
        plain = not (subject.call.grouped or subject.call.biased)
        twin = " Or call npu_moe_gating_top_k_softmax_v2 with renorm=1, the same but for rounding." if plain else ""
        yield Watch(
            "renorm on old CANN",
            'Releases before 2026 answer "renorm is: 1, but currently only support 0". There, pass renorm=0 and '
            f"routed_scaling_factor=1.0, divide by the sum, then multiply by the factor, in this order.{twin}",
            f"{_VLLM} #7160, #11075",
        )


def _scale(subject: Subject) -> Iterator[Watch]:
    call = subject.call
    if call.scale == 1.0:
        return
    where = "The operator multiplies by it."
    if call.operator != "npu_moe_gating_top_k":
        where = "The softmax gates have no such attribute: multiply after the call."
    elif call.out_flag:
        where = "It goes on the gathered weights, not into the call."
    elif call.renorm == 1:
        where += " A division by the sum after the call, as in one integration, cancels it."
    yield Watch(
        "scale lost or doubled",
        f"The weights have a factor of {call.scale}. {where} Make sure that it is applied once.",
        f"{_SGLANG} #29909, #31280",
    )


def _experts(subject: Subject) -> Iterator[Watch]:
    call = subject.call
    if call.operator == "npu_moe_gating_top_k" and call.num_experts != 256:
        yield Watch(
            "E is not 256",
            f"The model has {call.num_experts} experts. Early releases support 256 only, and some used the operator "
            "anyway: one model scored 0.05 instead of 0.67.",
            f"{_SGLANG} #16076, {_VLLM} #2958, #4356",
        )
    if subject.without_weights:
        yield Watch(
            "experts without weights",
            f"The last {subject.without_weights} ids give back the token itself. active_expert_range leaves them out, "
            "so that no row goes to them, and what they give is added at the end. CANN's MoeFinalizeRoutingV3 and "
            "npu_moe_distribute_combine_v2 know them as copy experts.",
            "LongCat-Flash",
        )
    if call.norm_type == 0 and not (call.grouped or call.biased) and call.num_experts % 16 == 0:
        yield Watch(
            "310P",
            "Above 1024 rows the softmax gate overflows its buffer and gives inf: call it in chunks of 1024.",
            f"{_VLLM} #11391",
        )


def _precision(subject: Subject) -> Iterator[Watch]:
    if subject.dtype in {"bfloat16", "float16"}:
        yield Watch(
            "router in half precision",
            f"The model's dtype is {subject.dtype}. Compute the router's logits in float32: in bfloat16, with 256 "
            "experts, four rows in ten have a tie inside the top 9. It costs nothing that can be measured.",
            f"{_VLLM} #9617, #8359",
        )
    if subject.call.biased:
        yield Watch(
            "dtype of the bias",
            "The bias must have the dtype of the logits. Keep both in float32; rounded to bfloat16 the bias chooses "
            "other experts.",
            "CANN ops-transformer",
        )


def _release(subject: Subject) -> Iterator[Watch]:
    if subject.call.operator == "npu_moe_gating_top_k":
        yield Watch("default of norm_type", "Pass norm_type always: its default was 1 in torch_npu 7.0.", _OP_PLUGIN)
    yield Watch("names", "torch_npu's npu_moe_init_routing_v2 is CANN's version 3, aclnnMoeInitRoutingV3.", _OP_PLUGIN)


def _layout(subject: Subject) -> Iterator[Watch]:
    yield Watch(
        "-1 with expert parallelism",
        "Where some experts live elsewhere, expanded_row_idx holds -1. npu_moe_finalize_routing takes that in modes 1 "
        "and 3 only, with rows of three dimensions; and pass active_expert_range, whose default sticks.",
        f"{_SGLANG} #40705, {_VLLM} #10579",
    )
    if subject.rule.weighting.apply_to == "input":
        yield Watch(
            "weights on the input",
            "The weight multiplies what the expert receives: multiply expanded_x by the weights in their order before "
            "the experts, and finalize with ones.",
            "Llama 4",
        )


def _padding(subject: Subject) -> Iterator[Watch]:
    yield Watch(
        "NaN in padding rows",
        "The operators promise nothing for NaN. Fill padding rows with zeros before the gate.",
        "vllm-project/vllm #39391",
    )
