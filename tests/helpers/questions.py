"""Lines to be answered."""

import json
from typing import Any


def question(number: int) -> dict[str, Any]:
    subtasks = [{"id": f"q{i}", "prompt": f"p{i}"} for i in range(number % 3 + 1)]
    return {"id": f"d{number}", "document": f"text {number} é", "subtasks": subtasks}


def text_of(*numbers: int) -> bytes:
    return b"".join(json.dumps(question(number)).encode() + b"\n" for number in numbers)
