"""Packed arrays, unpacked here by an independent reading of the format."""

import base64
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moegate.report.packing import pack_experts, pack_levels, pack_ratios, pack_weights

FINITE = st.floats(0, 2.0**7, allow_nan=False)


def numbers(packed: dict[str, Any], dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed["data"]), dtype=dtype)


@pytest.mark.parametrize(("dtype", "wire", "error"), [(np.uint8, "u1", 0.018), (np.uint16, "<u2", 0.0002)])
@given(ratios=arrays(np.float64, (3, 4), elements=FINITE))
def test_ratios_keep_their_size_and_zero_stays_zero(ratios: np.ndarray, dtype: Any, wire: str, error: float) -> None:
    packed = pack_ratios(ratios, dtype)
    code = numbers(packed, wire).reshape(packed["shape"]).astype(float)
    steps = 2.0 ** packed["bits"] - 2
    unpacked = np.where(code == 0, 0, 2 ** (packed["low"] + (code - 1) / steps * (packed["high"] - packed["low"])))
    assert ((unpacked == 0) == (ratios == 0)).all()
    inside = ratios >= 2.0 ** packed["low"]
    np.testing.assert_allclose(unpacked[inside], ratios[inside], rtol=error)
    # What is too small for the range is shown as the smallest of it, never as nothing.
    assert (unpacked[(ratios > 0) & ~inside] == 2.0 ** packed["low"]).all()


def test_a_ratio_beyond_the_range_is_the_end_of_the_range() -> None:
    packed = pack_ratios(np.array([1e9]), np.uint8)
    assert numbers(packed, "u1")[0] == 255


@given(arrays(np.float64, (2, 5), elements=st.one_of(st.just(float("nan")), st.floats(0, 1e6))))
def test_levels_keep_missing_values_apart(values: np.ndarray) -> None:
    packed = pack_levels(values)
    code = numbers(packed, "<u2").reshape(2, 5)
    assert ((code == 65535) == np.isnan(values)).all()
    known = ~np.isnan(values)
    error = packed["largest"] / 65534
    np.testing.assert_allclose(code[known] / 65534 * packed["largest"], values[known], atol=error)


@pytest.mark.parametrize(("largest", "bits"), [(3, 8), (253, 8), (254, 8), (255, 16), (511, 16)])
def test_experts_fit_and_none_is_no_expert(largest: int, bits: int) -> None:
    experts = np.array([[-1.0, 0.0, float(largest)]])
    packed = pack_experts(experts)
    assert packed["bits"] == bits
    code = numbers(packed, f"<u{bits // 8}").astype(int)
    assert np.where(code == packed["none"], -1, code).tolist() == experts[0].tolist()


def test_weights_above_one_keep_their_scale() -> None:
    packed = pack_weights(np.array([0.0, 1.25, 2.5]))
    np.testing.assert_allclose(numbers(packed, "u1") / 255 * packed["largest"], [0, 1.25, 2.5], atol=0.005)


def test_all_zero_weights_do_not_divide_by_zero() -> None:
    assert numbers(pack_weights(np.zeros(3)), "u1").tolist() == [0, 0, 0]
