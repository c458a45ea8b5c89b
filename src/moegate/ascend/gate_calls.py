"""Which operator calls a routing rule comes to, with their arguments written out."""

from dataclasses import dataclass

from moegate.rule import RoutingRule
from moegate.scoring import Score
from moegate.selection import GroupedTopK, TopK

NORM_TYPE = {"softmax": 0, "sigmoid": 1, "sqrt_softplus": 2}
"""The ``norm_type`` of each score that the operators know."""
SOFTMAX_WITH_BIAS = frozenset(("ernie4_5_moe", "ernie4_5_vl_moe_text", "longcat_flash"))
"""Model types that score by a softmax and add a correction bias for the selection."""
SIGMOID_WITHOUT_BIAS = frozenset(("cohere2_moe", "flint"))
"""Model types that score by a sigmoid and have no correction bias."""


@dataclass(frozen=True)
class GateCall:
    """The gate of a rule: one operator and its attributes, and what is left to do after it.

    Attributes:
        operator: ``npu_moe_gating_top_k`` or ``npu_moe_gating_top_k_softmax_v2``.
        num_experts: ``E``.
        k: experts per token.
        biased: whether routers of this kind have a correction bias.
        k_group: how many groups are kept.
        group_count: how many there are.
        group_select_mode: 0 for the maximum, 1 for the top two.
        renorm: the attribute of this name.
        norm_type: the attribute of this name.
        out_flag: whether the scores are asked for, so that weights that the operator can't give are gathered from them.
        scale: the factor on the weights.
        eps: what is added to their sum.
        hashed: whether the experts are looked up by token id.
    """

    operator: str
    num_experts: int
    k: int
    biased: bool = False
    k_group: int = 1
    group_count: int = 1
    group_select_mode: int = 0
    renorm: int = 0
    norm_type: int = 0
    out_flag: bool = False
    scale: float = 1.0
    eps: float = 1e-20
    hashed: bool = False

    @property
    def grouped(self) -> bool:
        """Whether the groups select anything."""
        return self.k_group < self.group_count < self.num_experts

    def written(self) -> str:
        """The call as Python, and a second line where the operator leaves something to do."""
        if self.operator == "npu_moe_gating_top_k_softmax_v2":
            call = f"y, expert_idx, _ = torch_npu.{self.operator}(logits, k={self.k}, renorm={self.renorm})"
            return call if self.scale == 1.0 else f"{call}\ny = y * {self.scale}"
        scale = 1.0 if self.out_flag else self.scale
        arguments = [
            *self._tensors(),
            f"k_group={self.k_group}",
            f"group_count={self.group_count}",
            f"group_select_mode={self.group_select_mode}",
            f"renorm={self.renorm}",
            f"norm_type={self.norm_type}",
            f"out_flag={self.out_flag}",
            f"routed_scaling_factor={scale}",
            f"eps={self.eps}",
        ]
        results = "_, expert_idx, out" if self.out_flag else "y, expert_idx, _"
        call = f"{results} = torch_npu.{self.operator}(logits, {self.k}, {', '.join(arguments)})"
        if not self.out_flag:
            return call
        factor = "" if self.scale == 1.0 else f" * {self.scale}"
        return f"{call}\ny = out.gather(-1, expert_idx.long()){factor}"

    def _tensors(self) -> list[str]:
        if self.hashed:
            return ["input_ids=input_ids", "tid2eid=tid2eid"]
        return ["bias=correction_bias"] if self.biased else []


def gate_call(rule: RoutingRule, num_experts: int, *, biased: bool, hashed: bool = False) -> GateCall | None:
    """The gate of a rule; None when no operator computes it.

    Example:
        >>> from moegate import recipes
        >>> gate_call(recipes.gpt_oss(), 128, biased=False).written()
        'y, expert_idx, _ = torch_npu.npu_moe_gating_top_k_softmax_v2(logits, k=4, renorm=1)'
    """
    selection, kind, weighting = rule.selection, rule.score.kind, rule.weighting
    if not isinstance(selection, TopK | GroupedTopK) or getattr(selection, "dropped_score", None) is not None:
        return None
    plain = isinstance(selection, TopK) and not (biased or hashed)
    if plain and (kind == "softmax_selected" or (kind == "softmax" and not weighting.renormalize)):
        after = int(kind == "softmax_selected")
        return GateCall(
            "npu_moe_gating_top_k_softmax_v2", num_experts, selection.top_k, renorm=after, scale=weighting.scale
        )
    # Renormalised over the chosen, a softmax over all is the softmax over them.
    kind, renormalize = ("softmax", True) if kind == "softmax_selected" else (kind, weighting.renormalize)
    if kind not in NORM_TYPE:
        return None
    grouped = isinstance(selection, GroupedTopK) and not hashed
    return GateCall(
        "npu_moe_gating_top_k",
        num_experts,
        selection.top_k,
        biased=biased and not hashed,
        k_group=selection.groups_kept if grouped and isinstance(selection, GroupedTopK) else 1,
        group_count=selection.num_groups if grouped and isinstance(selection, GroupedTopK) else 1,
        group_select_mode=int(isinstance(selection, GroupedTopK) and selection.group_score == "top2_sum"),
        renorm=int(renormalize and kind == "softmax"),
        norm_type=NORM_TYPE[kind],
        # The operator divides these scores by their sum whatever renorm says.
        out_flag=kind != "softmax" and not renormalize,
        scale=weighting.scale,
        eps=weighting.eps,
        hashed=hashed,
    )


def has_bias_by_custom(score: Score, model_type: object) -> bool:
    """Whether routers of this type have a correction bias; of a type that is not known, all but the softmax's have."""
    if model_type in SOFTMAX_WITH_BIAS:
        return True
    return score.kind in {"sigmoid", "sqrt_softplus"} and model_type not in SIGMOID_WITHOUT_BIAS


def moving_calls(rule: RoutingRule, num_experts: int, k: int, without_weights: int = 0) -> tuple[tuple[str, str], ...]:
    """The calls that take tokens to their experts and back: operator and Python; the experts come in between.

    Experts without weights have the ids behind the others and give back the token.
    """
    dropping = rule.capacity is not None
    range_and_counts = (
        f"expert_num={num_experts + without_weights}, drop_pad_mode={int(dropping)}, expert_tokens_num_type=1, "
        f"expert_tokens_num_flag=True, active_expert_range=[0, {num_experts}], quant_mode=-1, row_idx_type=0"
    )
    room = "expert_capacity=capacity" if dropping else f"active_num=num_tokens * {k}"
    sent = (
        "expanded_x, expanded_row_idx, tokens_per_expert, _ = torch_npu.npu_moe_init_routing_v2("
        f"hidden, expert_idx, {room}, {range_and_counts})"
    )
    weights = "torch.ones_like(y)" if rule.weighting.apply_to == "input" else "y"
    # A slot without a row is legal in mode 3 only, which takes rows of three dimensions.
    rows = "expert_rows[None]" if without_weights and not dropping else "expert_rows"
    returned = (
        "out = torch_npu.npu_moe_finalize_routing("
        f"{rows}, None, None, None, {weights}, expanded_row_idx, expert_idx, "
        f"drop_pad_mode={3 if dropping or without_weights else 2})"
    )
    if without_weights:
        returned += f"\nout = out + ({weights} * (expert_idx >= {num_experts})).sum(-1, keepdim=True) * hidden"
    return ("npu_moe_init_routing_v2", sent), ("npu_moe_finalize_routing", returned)
