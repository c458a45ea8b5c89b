"""Where Ascend's gating operators and moegate's contract differ: every difference, by name, in one place."""

from dataclasses import dataclass

from moegate.parts import check_bool, check_choice

_CHOICES = {
    "rank_by": ("scores", "logits"),
    "softplus": ("stable", "naive"),
    "finished": ("num_experts", "empty"),
    "row_idx": ("column", "row"),
    "dropped_groups": ("zero", "excluded"),
    "y_dtype": ("input", "float32"),
}


@dataclass(frozen=True)
class Compat:
    """Which of two behaviours the gating operators have where Ascend and moegate differ.

    The defaults are what the operators are documented to do; ``MOEGATE`` is what ``moegate.route`` does.

    Args:
        rank_by: ``"scores"`` orders experts by float32 scores, so that saturated scores tie; ``"logits"`` orders by
            the logits where a monotone score has no bias.
        always_normalize: True divides sigmoid and sqrt-softplus weights by their sum whatever ``renorm`` says; with
            False ``renorm`` decides.
        softplus: ``"stable"`` computes ``sqrt(softplus(x))`` as documented, for any ``x``; ``"naive"`` computes
            ``sqrt(ln(1 + exp(x)))`` step by step in float32, as the kernel of the 950 does: infinite above 88.7, zero
            below -16.6, and coarse between.
        finished: ``"num_experts"`` marks each slot of a finished row with the index ``E`` and leaves its weights;
            ``"empty"`` marks it with -1 and weight 0.
        row_idx: ``"column"`` numbers slot ``j`` of row ``i`` as ``j * N + i``; ``"row"`` as ``i * K + j``.
        dropped_groups: ``"zero"`` multiplies the scores of groups that ``moe_fused_topk`` drops by 0, which beats a
            negative score; ``"excluded"`` leaves their experts out.
        y_dtype: ``"input"`` casts weights to the dtype of ``x``; ``"float32"`` leaves them.

    Example:
        >>> ASCEND.rank_by, MOEGATE.rank_by
        ('scores', 'logits')
    """

    rank_by: str = "scores"
    always_normalize: bool = True
    softplus: str = "stable"
    finished: str = "num_experts"
    row_idx: str = "column"
    dropped_groups: str = "zero"
    y_dtype: str = "input"

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        check_bool("always_normalize", self.always_normalize)


ASCEND = Compat()
"""What the operators do."""

MOEGATE = Compat(
    rank_by="logits",
    always_normalize=False,
    finished="empty",
    row_idx="row",
    dropped_groups="excluded",
    y_dtype="float32",
)
"""What ``moegate.route`` does."""


def check_compat(compat: object) -> None:
    """Raises unless this is a ``Compat``."""
    if not isinstance(compat, Compat):
        raise TypeError(f"compat must be a moegate.ascend.Compat, such as ASCEND or MOEGATE; got {compat!r}.")
