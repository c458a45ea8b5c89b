"""The benchmarks behind ``moegate bench``: every variant is checked against a float64 oracle before it is timed.

``suites/`` holds what is measured, ``peers/`` what it is measured against, ``oracles/`` what must come out. A ``Case``
is a set of variants that compute the same thing; ``measure`` checks them, times them in turn, and gives one row, which
``Results`` appends to a JSON-lines file at once.
"""

__all__: list[str] = []
