"""What Ascend's operators refuse, as one kind of error that carries their codes.

An argument without a meaning is always refused. What only the hardware or a release forbids, such as more than 2048
experts, is refused with ``strict=True`` and computed otherwise.
"""

from torch import Size, Tensor, bfloat16, float16, float32

NULL_POINTER = 161001
"""``ACLNN_ERR_PARAM_NULLPTR``: a tensor that must be there is missing."""
INVALID = 161002
"""``ACLNN_ERR_PARAM_INVALID``: a dtype or a shape that the operator does not take."""
TILING = 561002
"""``ACLNN_ERR_INNER_TILING_ERROR``: the kernel can't be laid out for these sizes and attributes."""

_NAMES = {
    NULL_POINTER: "ACLNN_ERR_PARAM_NULLPTR",
    INVALID: "ACLNN_ERR_PARAM_INVALID",
    TILING: "ACLNN_ERR_INNER_TILING_ERROR",
}
DEVICE_DTYPES = (float16, bfloat16, float32)
"""The dtypes that the devices compute gates in."""


class AscendOperatorError(ValueError, RuntimeError):
    """An argument that Ascend's operator refuses, with the operator's own error code.

    It is a ``ValueError`` as everywhere in moegate, and a ``RuntimeError`` as it is on the device, so that code that
    catches the device's errors catches these.

    Attributes:
        code: the number that CANN reports, such as 561002.

    Example:
        >>> error = AscendOperatorError(TILING, "the operator takes at most 2048 experts, got 4096.")
        >>> error.code, str(error)[:37]
        (561002, 'ACLNN_ERR_INNER_TILING_ERROR (561002)')
    """

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(f"{_NAMES[code]} ({code}): {sentence}")
        self.code = code


def refuse_unless(holds: bool, code: int, sentence: str, *values: object) -> None:
    """Raises an ``AscendOperatorError`` unless ``holds``; the values are put into the sentence only then."""
    if not holds:
        shown = [tuple(value) if isinstance(value, Size) else value for value in values]
        raise AscendOperatorError(code, sentence.format(*shown))


def device_only(holds: bool, code: int, sentence: str, *values: object) -> None:
    """Like ``refuse_unless``, for what only the device forbids: the sentence ends with the way out."""
    refuse_unless(holds, code, f"{sentence} Without strict=True it is computed here.", *values)


def check_device_dtype(name: str, values: Tensor) -> None:
    """Raises unless the devices take the dtype of ``values``."""
    device_only(
        values.dtype in DEVICE_DTYPES,
        INVALID,
        "{} must be float16, bfloat16 or float32 on the device, got {}.",
        name,
        values.dtype,
    )


def check_not_empty(name: str, values: Tensor) -> None:
    """Raises when a dimension is 0: the tiling would divide by it."""
    device_only(values.numel() > 0, TILING, "{} must not be empty on the device, got the shape {}.", name, values.shape)
