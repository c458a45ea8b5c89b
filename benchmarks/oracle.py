"""What both sides must compute, in NumPy float64, token by token."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

import moegate

Array = NDArray[np.float64]


def float64(tensor: Tensor) -> Array:
    """A tensor as a float64 array."""
    return tensor.detach().double().numpy()


def route(logits_TE: Array, top_k: int) -> tuple[NDArray[np.int64], Array]:
    """`(index, weights)`: softmax, the `top_k` greatest with ties to the lowest index, renormalised."""
    index_TK = np.argsort(-logits_TE, axis=-1, kind="stable")[:, :top_k]
    exponent_TE = np.exp(logits_TE - logits_TE.max(axis=-1, keepdims=True))
    chosen_TK = np.take_along_axis(exponent_TE, index_TK, axis=-1)
    return index_TK, chosen_TK / chosen_TK.sum(axis=-1, keepdims=True)


def mixture(hidden_TD: Array, index_TK: NDArray[np.int64], weights_TK: Array, experts: moegate.Experts) -> Array:
    """The weighted sum of the chosen SwiGLU experts of each token."""
    gate_up, down = float64(experts.gate_up_proj), float64(experts.down_proj)
    out_TD = np.zeros_like(hidden_TD)
    for token, (chosen, weights) in enumerate(zip(index_TK, weights_TK, strict=True)):
        for expert, weight in zip(chosen, weights, strict=True):
            gate_F, up_F = np.split(gate_up[expert] @ hidden_TD[token], 2)
            out_TD[token] += weight * (down[expert] @ (gate_F / (1 + np.exp(-gate_F)) * up_F))
    return out_TD
