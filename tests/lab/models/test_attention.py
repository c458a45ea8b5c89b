"""Attention against plain loops in float64."""

import numpy as np
import pytest
import torch

from moegate.lab.models import CausalAttention, rotary_angles, rotate


def rotated(vector: np.ndarray, position: int) -> np.ndarray:
    half = len(vector) // 2
    out = np.empty_like(vector)
    for pair in range(half):
        angle = position * 10_000.0 ** (-2 * pair / len(vector))
        first, second = vector[pair], vector[pair + half]
        out[pair] = first * np.cos(angle) - second * np.sin(angle)
        out[pair + half] = second * np.cos(angle) + first * np.sin(angle)
    return out


def test_rotation_is_that_of_each_pair_by_its_angle() -> None:
    channels = torch.randn(7, 6, dtype=torch.float64)
    cosine, sine = (angle.double() for angle in rotary_angles(7, 6))
    expected = np.stack([rotated(row, position) for position, row in enumerate(channels.numpy())])
    np.testing.assert_allclose(rotate(channels, cosine, sine).numpy(), expected, atol=1e-6)


def test_scores_depend_on_distance_alone() -> None:
    query, key = torch.randn(8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    cosine, sine = (angle.double() for angle in rotary_angles(20, 8))
    queries, keys = rotate(query.expand(20, 8), cosine, sine), rotate(key.expand(20, 8), cosine, sine)
    scores = queries @ keys.T
    for distance in range(10):
        diagonal = scores.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-5)


def test_attention_equals_a_loop_over_heads_and_positions() -> None:
    attention = CausalAttention(hidden_size=8, num_heads=2).double()
    hidden = torch.randn(2, 5, 8, dtype=torch.float64)
    out = attention(hidden, *(angle.double() for angle in rotary_angles(5, 4))).detach().numpy()
    weights = attention.qkv_proj.weight.detach().numpy().reshape(3, 2, 4, 8)
    expected = np.zeros((2, 5, 8))
    for batch, sequence in enumerate(hidden.numpy()):
        for head in range(2):
            query, key, value = (sequence @ weights[part, head].T for part in range(3))
            query = np.stack([rotated(row, position) for position, row in enumerate(query)])
            key = np.stack([rotated(row, position) for position, row in enumerate(key)])
            for position in range(5):
                score = key[: position + 1] @ query[position] / 2.0
                share = np.exp(score - score.max())
                mixed = (share / share.sum()) @ value[: position + 1]
                expected[batch, position, head * 4 : head * 4 + 4] = mixed
    expected = expected @ attention.out_proj.weight.detach().numpy().T
    np.testing.assert_allclose(out, expected, atol=1e-6)


@pytest.mark.parametrize("num_heads", [0, 3])
def test_heads_must_divide_the_hidden_size(num_heads: int) -> None:
    with pytest.raises(ValueError, match=f"hidden_size=8 is not divisible by num_heads={num_heads}"):
        CausalAttention(8, num_heads)


def test_an_odd_head_is_refused() -> None:
    with pytest.raises(ValueError, match="head_size=3 must be even"):
        rotary_angles(4, 3)
