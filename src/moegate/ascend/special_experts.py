"""Experts without weights: they give nothing, the token itself, or a fixed combination of it with a constant."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from moegate.ascend.limits import INVALID, AscendOperatorError
from moegate.ascend.limits_rows import check_float, check_tensor

Range = tuple[int, int]
NONE: Range = (0, 0)


@dataclass(frozen=True, eq=False)
class SpecialExperts:
    """Ranges ``[start, end)`` of expert ids, and what the experts in them give for token ``x[t]``.

    Attributes:
        zero: nothing; not even a bias is added.
        copy: ``x[t]``.
        constant: ``alpha1[c] · x[t] + alpha2[c] · v[c]`` with ``c`` counted from the start of the range.
        x: ``[T, D]``.
        alpha1, alpha2, v: ``[constant experts, D]``.

    Example:
        >>> special = SpecialExperts(zero=(2, 3), copy=(3, 4), x=torch.tensor([[5.0], [6.0]]))
        >>> expert, row = torch.tensor([3, 0]), torch.tensor([[1.0], [1.0]])
        >>> special.instead(expert, row).flatten().tolist(), special.gives_nothing(torch.tensor([2, 3])).tolist()
        ([5.0, 1.0], [True, False])
    """

    zero: Range = NONE
    copy: Range = NONE
    constant: Range = NONE
    x: Tensor | None = None
    alpha1: Tensor | None = None
    alpha2: Tensor | None = None
    v: Tensor | None = None

    def check(self, num_tokens: int, hidden_size: int) -> None:
        """Raises unless the ranges are apart and what they need is there."""
        ranges = sorted(bounds for bounds in (self.zero, self.copy, self.constant) if bounds != NONE)
        for (_, end), (start, _) in pairwise(ranges):
            if start < end:
                raise AscendOperatorError(
                    INVALID, f"The ranges of zero, copy and constant experts must not overlap: {ranges}."
                )
        if self.copy != NONE or self.constant != NONE:
            check_tensor("x, which copy and constant experts give,", self.x, num_tokens, hidden_size)
            check_float("x", self.x)
        count = self.constant[1] - self.constant[0]
        for name in ("alpha1", "alpha2", "v"):
            if count:
                check_tensor(f"{name}, of the constant experts,", getattr(self, name), count, hidden_size)
                check_float(name, getattr(self, name))

    def gives_nothing(self, expert_T: Tensor) -> Tensor:
        """Which tokens' expert is a zero expert."""
        return _within(expert_T, self.zero)

    def needs_no_row(self, expert_T: Tensor) -> Tensor:
        """Which tokens' expert is special."""
        return _within(expert_T, self.zero) | _within(expert_T, self.copy) | _within(expert_T, self.constant)

    def instead(self, expert_T: Tensor, rows_TD: Tensor) -> Tensor:
        """The rows, with those of copy and constant experts put in, in the type of the rows."""
        if self.copy != NONE and self.x is not None:
            rows_TD = torch.where(_within(expert_T, self.copy)[:, None], self.x.to(rows_TD.dtype), rows_TD)
        if self.constant != NONE:
            fixed_TD = self._constant_rows(expert_T, rows_TD.dtype)
            rows_TD = torch.where(_within(expert_T, self.constant)[:, None], fixed_TD, rows_TD)
        return rows_TD

    def _constant_rows(self, expert_T: Tensor, dtype: torch.dtype) -> Tensor:
        assert self.x is not None and self.alpha1 is not None and self.alpha2 is not None and self.v is not None
        start, end = self.constant
        which_T = (expert_T - start).clamp(0, end - start - 1)
        alpha1_TD, alpha2_TD, v_TD = (values.to(dtype)[which_T] for values in (self.alpha1, self.alpha2, self.v))
        return alpha1_TD * self.x.to(dtype) + alpha2_TD * v_TD


def expert_range(name: str, bounds: Sequence[int] | None) -> Range:
    """The range as a pair; None, an empty list and the device's ``[-1, -1]`` are no range.

    Example:
        >>> expert_range("copy_expert_range", [8, 10]), expert_range("zero_expert_range", [-1, -1])
        ((8, 10), (0, 0))
    """
    if bounds is None or tuple(bounds) in ((), (-1, -1)):
        return NONE
    if len(bounds) != 2 or not 0 <= bounds[0] < bounds[1]:
        raise AscendOperatorError(
            INVALID, f"{name} must be [start, end] with 0 <= start < end, or None; got {list(bounds)}."
        )
    return int(bounds[0]), int(bounds[1])


def _within(expert_T: Tensor, bounds: Range) -> Tensor:
    return (expert_T >= bounds[0]) & (expert_T < bounds[1])
