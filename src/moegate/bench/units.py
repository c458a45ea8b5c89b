"""How times are written."""

import math


def duration(microseconds: float) -> str:
    """Three digits and a unit.

    Example:
        >>> duration(0.4567), duration(12345.6)
        ('0.457 µs', '12.3 ms')
    """
    value, unit = (microseconds, "µs") if microseconds < 1000 else (microseconds / 1000, "ms")
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:,.{digits}f} {unit}"
