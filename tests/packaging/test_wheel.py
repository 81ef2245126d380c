"""The wheel: its contents, and that it works without the checkout."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("setuptools")

ROOT = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without network access, from a copy: setuptools writes into the folder it builds in."""
    checkout = tmp_path_factory.mktemp("checkout")
    for folder in ("pid_jax", "configs"):
        shutil.copytree(
            ROOT / folder, checkout / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    for file in ("README.md", "LICENSE", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / file, checkout)
    for file in ROOT.glob("requirements*.txt"):
        shutil.copy(file, checkout)
    program = "import setuptools.build_meta as b, sys; print(b.build_wheel(sys.argv[1]))"
    output = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "-c", program, str(output)],
        capture_output=True,
        text=True,
        cwd=checkout,
        timeout=300,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    [file] = output.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the content of the wheel, as site-packages has it."""
    folder = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(installed),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
    }
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        timeout=280,
    )


def test_the_wheel_has_every_source_file_and_nothing_else(installed: Path) -> None:
    expected = {
        Path(file.relative_to(ROOT))
        for file in (ROOT / "pid_jax").rglob("*")
        if file.suffix in (".py", ".css") or file.name == "py.typed"
    } | {
        Path("pid_jax", "configs", file.relative_to(ROOT / "configs"))
        for file in (ROOT / "configs").rglob("*.py")
    }
    files = {file.relative_to(installed) for file in installed.rglob("*") if file.is_file()}
    assert {file for file in files if ".dist-info" not in file.parts[0]} == expected


def test_the_metadata_names_the_command_the_extras_and_the_licence(installed: Path) -> None:
    [folder] = installed.glob("*.dist-info")
    commands = (folder / "entry_points.txt").read_text(encoding="utf-8")
    assert "pid-jax = pid_jax.commands.main:main" in commands
    metadata = (folder / "METADATA").read_text(encoding="utf-8")
    extras = set(re.findall(r"^Provides-Extra: (\w+)$", metadata, re.MULTILINE))
    assert extras == {"benchmarks", "cuda", "dev", "docs", "patterns", "tpu"}
    assert "License-Expression: Apache-2.0" in metadata
    core = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", metadata, re.MULTILINE)
    assert "jax" in core
    assert not {"torch", "tensorflow"} & set(core)


def test_the_command_trains_the_quickstart_in_any_folder(installed: Path, tmp_path: Path) -> None:
    if not (installed / "pid_jax/commands/main.py").is_file():
        pytest.skip("pid_jax.commands.main does not exist yet")
    program = "import sys; from pid_jax.commands.main import main; sys.exit(main())"
    result = run(
        installed,
        tmp_path,
        *("-c", program, "train", "--config=configs/quickstart.py", "--workdir=run"),
        *("--config.train.steps=2", "--config.optimizer.warmup_steps=1"),
        *("--config.model.architecture.num_layers=1", "--config.data.batch_size=4"),
        "--config.data.options.train_dialogues=30",
        *("--config.evaluation.documents=8", "--config.evaluation.batch_size=8"),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "run/metrics.jsonl").is_file()
