"""Pictures: PNG in, PNG out, and everything else refused."""

import base64
import io
from typing import Any

import numpy as np
import pytest

from moegate.report.pictures import as_png_base64, encode_png

Image = pytest.importorskip("PIL.Image")


@pytest.mark.parametrize("shape", [(1, 1), (28, 28), (3, 7)])
def test_another_decoder_reads_the_same_pixels(shape: tuple[int, int]) -> None:
    grey = np.random.default_rng(0).integers(0, 256, size=shape).astype(np.uint8)
    decoded = Image.open(io.BytesIO(base64.b64decode(as_png_base64(grey.tolist(), "here"))))
    np.testing.assert_array_equal(np.asarray(decoded), grey)


def test_a_png_passes_with_or_without_its_data_prefix() -> None:
    text = base64.b64encode(encode_png(np.zeros((2, 2), dtype=np.uint8))).decode()
    assert as_png_base64(text, "here") == text
    assert as_png_base64("data:image/png;base64," + text, "here") == text


@pytest.mark.parametrize(
    "pixels",
    [
        'x" onerror="alert(1)',
        base64.b64encode(b"<svg onload='alert(1)'/>").decode(),
        [[0, 256]],
        [[-1, 0]],
        [[float("nan")]],
        [1, 2, 3],
        [[1], [2, 3]],
        [],
        None,
        {"a": 1},
    ],
)
def test_what_is_no_picture_is_refused_with_its_place(pixels: Any) -> None:
    with pytest.raises(ValueError, match="view 3"):
        as_png_base64(pixels, "view 3")
