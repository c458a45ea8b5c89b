"""Pictures of tokens as base64 PNG, the one form the page shows."""

import base64
import binascii
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def as_png_base64(pixels: Any, place: str) -> str:
    """Base64 PNG of a picture given as base64 PNG, or as rows of grey values from 0 to 255.

    Raises:
        ValueError: the picture is neither.
    """
    if isinstance(pixels, str):
        try:
            decoded = base64.b64decode(pixels.removeprefix("data:image/png;base64,"), validate=True)
        except (binascii.Error, ValueError):
            decoded = b""
        if not decoded.startswith(_SIGNATURE):
            raise ValueError(f"{place}: a picture in 'pixels' is not a base64 PNG.")
        return base64.b64encode(decoded).decode("ascii")
    try:
        grey = np.asarray(pixels, dtype=np.float64)
    except (TypeError, ValueError):
        grey = np.empty(0)
    if grey.ndim != 2 or not grey.size or not ((grey >= 0) & (grey <= 255)).all():
        raise ValueError(f"{place}: a picture in 'pixels' is not rows of grey values from 0 to 255.")
    return base64.b64encode(encode_png(grey.astype(np.uint8))).decode("ascii")


def encode_png(grey: npt.NDArray[np.uint8]) -> bytes:
    """An 8-bit grey PNG (RFC 2083) of a picture [height, width]."""
    height, width = grey.shape
    rows = b"".join(b"\0" + row.tobytes() for row in grey)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(name, body) for name, body in chunks)


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
