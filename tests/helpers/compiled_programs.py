"""What compiled programs hold."""

import math
import re


def array_sizes(lowered) -> list[int]:
    arrays = re.findall(r"\b[a-z]+\d*\[([\d,]+)\]", lowered.compile().as_text())
    assert len(arrays) > 10
    return [math.prod(map(int, dimensions.split(","))) for dimensions in set(arrays)]
