"""Causal self-attention with rotary positions, on PyTorch's own scaled dot product."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def rotary_angles(length: int, head_size: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines `[length, head_size]` of rotary position embedding.

    Angle of position p and pair i: `p · base^(-2i / head_size)`; the two halves of a head rotate together.

    Raises:
        ValueError: an odd `head_size`.

    Example:
        >>> cosine, sine = rotary_angles(4, 6)
        >>> cosine.shape, float(sine[0].abs().max())
        (torch.Size([4, 6]), 0.0)

    Source: Su et al., RoFormer, arXiv 2104.09864.
    """
    if head_size % 2:
        raise ValueError(f"head_size={head_size} must be even: rotary positions turn pairs of channels.")
    frequency = base ** (-torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)
    angle = torch.outer(torch.arange(length, dtype=torch.float32), frequency).repeat(1, 2)
    return angle.cos(), angle.sin()


def rotate(channels: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair of channels `[..., S, head_size]` by its position's angle.

    Example:
        >>> cosine, sine = rotary_angles(1, 4)
        >>> rotate(torch.ones(1, 4), cosine, sine)
        tensor([[1., 1., 1., 1.]])
    """
    first, second = channels.chunk(2, dim=-1)
    return channels * cosine + torch.cat((-second, first), dim=-1) * sine


class CausalAttention(nn.Module):
    """Multi-head causal self-attention, no dropout, no biases.

    Raises:
        ValueError: a hidden size that the heads don't divide.

    Example:
        >>> attention = CausalAttention(hidden_size=8, num_heads=2)
        >>> attention(torch.zeros(1, 5, 8), *rotary_angles(5, 4)).shape
        torch.Size([1, 5, 8])

    Source: Vaswani et al., arXiv 1706.03762.
    """

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        if num_heads < 1 or hidden_size % num_heads:
            raise ValueError(
                f"hidden_size={hidden_size} is not divisible by num_heads={num_heads}; "
                "choose a number of heads that divides it."
            )
        self.num_heads = num_heads
        self.qkv_proj = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.out_proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, hidden: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Return the attended values `[B, S, D]`; `cosine` and `sine` are `[S, head_size]`."""
        batch, length, size = hidden.shape
        split = self.qkv_proj(hidden).view(batch, length, 3, self.num_heads, size // self.num_heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(
            rotate(query, cosine, sine), rotate(key, cosine, sine), value, is_causal=True
        )
        out: Tensor = self.out_proj(attended.transpose(1, 2).reshape(batch, length, size))
        return out
