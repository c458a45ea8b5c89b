"""The k greatest: distinct places whose values are those of a full sort, in its order."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from moegate.bench.cases import Verdict


class TopKOracle:
    """The ``k`` greatest values of each row by a sort of everything.

    Example:
        >>> import torch
        >>> oracle = TopKOracle(torch.tensor([[1.0, 3.0, 2.0]]), 2)
        >>> oracle.verdict(torch.tensor([[1, 2]])), oracle.verdict(torch.tensor([[1, 0]]))
        (None, 'a value is 1 where 2 belongs')
    """

    def __init__(self, values_RN: Tensor, k: int) -> None:
        self._values_RN = values_RN.numpy()
        self._greatest_Rk: NDArray[np.float32] = -np.sort(-self._values_RN, axis=-1)[:, :k]

    def verdict(self, index_Rk: Tensor) -> Verdict:
        """The verdict on indices, in descending order of their values; ties may be in any order."""
        index = index_Rk.numpy()
        if index.shape != self._greatest_Rk.shape:
            return f"the index has shape {index.shape} instead of {self._greatest_Rk.shape}"
        ordered = np.sort(index, axis=-1)
        if (np.diff(ordered, axis=-1) == 0).any():
            return "a row has the same place twice"
        found = np.take_along_axis(self._values_RN, index, axis=-1)
        wrong = found != self._greatest_Rk
        if not wrong.any():
            return None
        return f"a value is {found[wrong][0]:g} where {self._greatest_Rk[wrong][0]:g} belongs"
