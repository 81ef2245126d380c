"""What the tests of evaluation share."""

from typing import Any

import pytest

from pid_jax import tasks


@pytest.fixture
def gold() -> list[dict[str, Any]]:
    """The right predictions of two dialogues, in the least that a line must have."""
    task = tasks.get("synthetic_dst", test_dialogues=2)
    return [
        {
            "id": example.id,
            "subtasks": [{"id": one.id, "prediction": one.target} for one in example.subtasks],
        }
        for example in task.examples(None, "test")
    ]
