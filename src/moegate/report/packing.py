"""Arrays as short base64 text that the page unpacks: one or two bytes a number."""

import base64
from typing import Any

import numpy as np
import numpy.typing as npt

from moegate.report.reading import Array

# Ratios are stored as logarithms: 0 means exactly zero, 1 and the largest code are the ends of the range.
RATIO_RANGE = {np.uint8: (-5.0, 8.0), np.uint16: (-12.0, 12.0)}
MISSING = 65535


def pack_ratios(ratios: Array, dtype: type[np.uint8] | type[np.uint16]) -> dict[str, Any]:
    """Ratios to a fair share; one byte keeps 3.6 %, two bytes 0.03 %."""
    low, high = RATIO_RANGE[dtype]
    top = np.iinfo(dtype).max
    with np.errstate(divide="ignore"):
        exponent = np.log2(ratios)
    code = 1 + np.rint((exponent.clip(low, high) - low) / (high - low) * (top - 1))
    code[ratios <= 0] = 0
    return {"low": low, "high": high, "shape": list(ratios.shape), "bits": top.bit_length(), "data": _text(code, dtype)}


def pack_levels(values: Array) -> dict[str, Any]:
    """Numbers from 0 up, NaN for missing, to 1/65534 of the largest."""
    largest = float(np.nanmax(values, initial=0.0)) or 1.0
    code = np.rint(values.clip(0) / largest * (MISSING - 1))
    code[~np.isfinite(values)] = MISSING
    return {"largest": largest, "shape": list(values.shape), "data": _text(code, np.uint16)}


def pack_experts(experts: npt.NDArray[Any]) -> dict[str, Any]:
    """Expert numbers; -1 becomes the largest code."""
    dtype = np.uint8 if experts.max(initial=0) < 255 else np.uint16
    none = np.iinfo(dtype).max
    code: Array = np.where(experts < 0, none, experts)
    return {"bits": none.bit_length(), "none": int(none), "shape": list(experts.shape), "data": _text(code, dtype)}


def pack_weights(weights: Array) -> dict[str, Any]:
    """Combine weights to 1/255 of the largest."""
    largest = float(weights.max(initial=0.0)) or 1.0
    return {"largest": largest, "data": _text(np.rint(weights.clip(0) / largest * 255), np.uint8)}


def _text(code: Array, dtype: type[np.uint8] | type[np.uint16]) -> str:
    return base64.b64encode(code.astype(np.dtype(dtype).newbyteorder("<")).tobytes()).decode("ascii")
