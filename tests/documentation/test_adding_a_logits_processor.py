"""docs/adding_a_logits_processor.md, followed word by word in a copy of the package."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import pages

PAGE = pages.ROOT / "docs/adding_a_logits_processor.md"
FUNCTION, DATACLASS, PROCESSOR, REGISTRATION = pages.blocks(PAGE, "python")

COMPARE = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
import pid_jax
from pid_jax import models
from pid_jax.decoding.automata import Automata
from pid_jax.decoding.logits_processors import TypicalP
from tests.helpers.tiny_t5 import TINY

logits = np.random.default_rng(0).normal(size=(1, 6, 1, 40)).astype(np.float32) * 3
config = models.build(TINY).config
ours = [TypicalP.create(mass, config)(jnp.asarray(logits), None).tolist() for mass in (0.3, 0.9)]
options = pid_jax.GenerationOptions(do_sample=True, typical_p=0.9, top_p=0.5)
applied = [type(one).__name__ for one in options.compiled(config, Automata()).search.processors]
module = models.build(TINY)
model = pid_jax.PidModel(module, models.init_params(module, jax.random.key(0)))
compiled = []
for typical_p in (0.9, 0.4):
    model.generate([[5, 6]], [[[7]]], max_new_tokens=3, do_sample=True, typical_p=typical_p)
    compiled.append(len(model.programs.compilations))
file = {"do_sample": True, "typical_p": 0.8, "top_k": 0}
of_file = dict(pid_jax.PidModel(module, model.params, None, file).generation_defaults)
try:
    model.generate([[5, 6]], [[[7]]], do_sample=True, typical_p=1.5)
except pid_jax.UserError as error:
    refused = str(error)
json.dump([logits.tolist(), ours, applied, compiled, of_file, refused], sys.stdout)
"""


@pytest.mark.slow
def test_a_processor_with_an_option_takes_one_class_and_one_registration(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from transformers.generation.logits_process import TypicalLogitsWarper

    shutil.copytree(pages.ROOT / "pid_jax", tmp_path / "pid_jax")
    shutil.copytree(pages.ROOT / "tests", tmp_path / "tests")
    file = tmp_path / "pid_jax/decoding/logits_processors.py"
    source = file.read_text(encoding="utf-8").replace(
        "import jax.numpy", "import jax\nimport jax.numpy"
    )
    file.write_text(f"{source}\n\n{PROCESSOR}", encoding="utf-8")
    file = tmp_path / "pid_jax/decoding/options.py"
    before, fields, after = file.read_text(encoding="utf-8").partition("    min_p: float = option(")
    file.write_text(before + REGISTRATION + fields + after, encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "-c", COMPARE],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    logits, ours, applied, compiled, of_file, refused = json.loads(ended.stdout)
    for mass, result in zip((0.3, 0.9), ours, strict=True):
        rows = torch.tensor(logits)[0, :, 0]
        expected = TypicalLogitsWarper(mass)(torch.zeros(6, 1).long(), rows)
        np.testing.assert_allclose(np.array(result)[0, :, 0], expected, rtol=1e-6)
    assert applied == ["Temperature", "TopP", "TypicalP"]
    assert compiled[0] == compiled[1]
    assert of_file == {"do_sample": True, "typical_p": 0.8}
    assert refused == "typical_p must be above 0 and at most 1, not 1.5"
    command = [sys.executable, "-m", "pid_jax.predict", "--help"]
    told = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "--typical-p" in told.stdout
