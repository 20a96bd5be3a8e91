"""The device itself: memory, arrays, launches, transfers, limits, and the interpreter that stands in for a GPU."""
