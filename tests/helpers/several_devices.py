"""Scripts in a process of their own, whose CPU has several devices."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.helpers.quick_compilation import xla_flags

ROOT = Path(__file__).parents[2]


def result_of(script: str, *arguments: str, devices: int) -> Any:
    """What a script prints, as JSON. It must end well and without a warning of the partitioner."""
    flags = xla_flags(f"--xla_force_host_platform_device_count={devices}")
    ended = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "full rematerialization" not in ended.stderr
    return json.loads(ended.stdout)
