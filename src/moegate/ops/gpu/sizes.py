"""Sizes of tensors in Triton programs, which have to be powers of two; needs no Triton."""


def power_of_two(size: int) -> int:
    """The least power of two that is not below a size.

    Example:
        >>> [power_of_two(size) for size in (0, 1, 5, 64)]
        [1, 1, 8, 64]
    """
    return 1 << max(0, size - 1).bit_length()
