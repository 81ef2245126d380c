"""What compiled programs hold."""

import math
import re

from tests.helpers.quick_compilation import compile_fully


def array_sizes(lowered) -> list[int]:
    """Element counts of every array of the program as users have it, fused ones included."""
    arrays = re.findall(r"\b[a-z]+\d*\[([\d,]+)\]", compile_fully(lowered).as_text())
    assert len(arrays) > 10
    return [math.prod(map(int, dimensions.split(","))) for dimensions in set(arrays)]
