"""Sizes of tensors in Triton programs, which have to be powers of two; needs no Triton."""


def power_of_two(size: int) -> int:
    """The least power of two that is not below a size.

    Example:
        >>> [power_of_two(size) for size in (0, 1, 5, 64)]
        [1, 1, 8, 64]
    """
    return 1 << max(0, size - 1).bit_length()


def block_of_rows(width: int) -> tuple[int, int]:
    """Rows and columns of a block of 1024 elements: columns that divide the width, where there are enough of them.

    Example:
        >>> block_of_rows(768), block_of_rows(100)
        ((4, 256), (8, 128))
    """
    dividing = width & -width
    columns = min(1024, dividing if dividing >= 64 else power_of_two(width))
    return 1024 // columns, columns
