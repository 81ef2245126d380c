"""README and docs/: links, commands, keys and code are right; docs/your_own_task.md is followed."""

import importlib.util
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from pid_jax.tasks import jsonl
from pid_jax.training import config as configuration
from tests.helpers import pages, tiny_checkpoint

ROOT = pages.ROOT
OWN_TASK = ROOT / "docs/your_own_task.md"
# Their blocks are parts of files, which tests of their own follow.
FOLLOWED_ELSEWHERE = {
    "README.md",
    "adapters.md",
    "adding_a_family.md",
    "adding_a_logits_processor.md",
    "how_generate_works.md",
    "your_own_task.md",
}
WITH_PYTHON = [
    page
    for page in pages.PAGES
    if page.name not in FOLLOWED_ELSEWHERE and pages.blocks(page, "python")
]
COMMANDS = sorted({tuple(command) for page in pages.PAGES for command in pages.commands(page)})
TRAINED = [command for command in COMMANDS if command[1] in ("train.py", "eval.py")]
# Words that the field does not use for what this project does, or that say nothing.
AVOIDED = (
    r"beg[aiu]ns?|beginning|advanc(?:e|es|ed|ing)|keep(?:s|ing)?|kept|rooms?|enough|places|"
    r"choosing|chosen|together|held|asked|houses?|floors?"
)


def of(page: Path) -> str:
    return page.name


@pytest.mark.parametrize("page", WITH_PYTHON, ids=of)
def test_python_blocks_run_one_after_the_other(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    tiny_checkpoint.write(tmp_path / "runs/quickstart/huggingface")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    for block in pages.blocks(page, "python"):
        exec(compile(block, page.name, "exec"), scope)


@pytest.mark.parametrize("page", pages.PAGES, ids=of)
def test_links_and_named_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    elsewhere = ("contributing.md", "changelog.md", "growth_cpu_2_cores.png")  # docs/hooks.py
    for link in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", text):
        assert (page.parent / link).exists() or link in elsewhere, link
    for path in re.findall(r"(?<![\w/])((?:pid_jax|docs|benchmarks|tests)/[\w./]*\w)", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", [*pages.PAGES, ROOT / "CHANGELOG.md"], ids=of)
def test_no_page_has_an_avoided_word(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("begin_suppress", "")
    assert re.findall(rf"\b(?:{AVOIDED})\b", text, re.IGNORECASE) == []


def program_of(command: Sequence[str]) -> tuple[str, ...]:
    """The words before the options: the interpreter or `pid-jax`, and the program."""
    return tuple(command[: 3 if command[1] == "-m" else 2])


@pytest.mark.parametrize("program", sorted({*map(program_of, COMMANDS)}), ids=" ".join)
def test_commands_have_the_options_that_are_shown(program: tuple[str, ...]) -> None:
    if program[1] in ("make_data.py", "check_tickets.py"):
        return  # files of docs/your_own_task.md
    start = [sys.executable, *program[1:]]
    if program[0] == "pid-jax":
        if importlib.util.find_spec("pid_jax.commands") is None:
            pytest.skip("pid_jax.commands does not exist yet")
        start = [sys.executable, "-m", "pid_jax", *program[1:]]
    shown = subprocess.run(
        [*start, "--help"], capture_output=True, text=True, check=True, cwd=ROOT, timeout=120
    ).stdout.replace("_", "-")
    for command in COMMANDS:
        if program_of(command) == program:
            for option in command[len(program) :]:
                name = option.split("=")[0]
                known = name.replace("_", "-") in shown or name.startswith("--config.")
                assert known or not name.startswith("-"), " ".join(command)


@pytest.mark.parametrize("command", TRAINED, ids=" ".join)
def test_configs_and_their_keys_exist(command: tuple[str, ...]) -> None:
    if importlib.util.find_spec("pid_jax.training.config_files") is None:
        pytest.skip("config files do not take arguments yet")
    [config] = [word for word in command if word.startswith("--config=")]
    overrides = [word for word in command if word.startswith("--config.")]
    configuration.load(config.removeprefix("--config="), overrides)


def test_keys_that_the_page_on_training_explains_exist() -> None:
    if importlib.util.find_spec("pid_jax.training.config_files") is None:
        pytest.skip("the configuration has no optimizer.args yet")
    text = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    keys = re.findall(r"`config\.([a-z_.]+)`", text)
    assert keys
    for key in keys:
        configuration.get(configuration.default(), key)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    shell = [line for page in pages.PAGES for line in pages.lines(page)]
    targets = {line.split()[1] for line in shell if line.startswith("make ")}
    assert {"quickstart", "test", "lint", "docs"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_api_reference_has_every_public_name() -> None:
    import pid_jax

    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^::: pid_jax\.(\w+)$", page, re.MULTILINE))
    assert set(pid_jax.__all__) <= shown
    for name in shown - set(pid_jax.__all__):
        assert inspect.ismodule(importlib.import_module(f"pid_jax.{name}"))
    # Functions and modules of one name: the page names the functions in full.
    for name in pid_jax.metrics.__all__:
        assert f"::: pid_jax.metrics.{name}.{name}\n" in page


def test_every_page_is_in_the_navigation() -> None:
    yaml = pytest.importorskip("yaml")
    navigation = yaml.safe_dump(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"])
    listed = set(re.findall(r"\w+\.md", navigation)) - {"contributing.md", "changelog.md"}
    assert listed == {page.name for page in (ROOT / "docs").glob("*.md")}


def test_the_line_that_is_shown_is_read() -> None:
    [line] = pages.blocks(OWN_TASK, "json")
    example = jsonl.parse_line(line, "page", 1, require_target=True)
    assert [subtask.target for subtask in example.subtasks] == ["1000", "late"]


# A smaller model and fewer steps than on the page, which change nothing that a reader would write.
SMALLER = (
    "--config.train.steps=4",
    "--config.optimizer.warmup_steps=1",
    *(f"--config.model.architecture.{name}=1" for name in ("num_layers", "num_decoder_layers")),
    *(f"--config.model.architecture.{name}=32" for name in ("d_model", "d_ff")),
)


@pytest.mark.slow
def test_everything_runs_as_it_stands(tmp_path: Path) -> None:
    # A checkout of one's own, as far as these commands see it.
    for program in ("train.py", "eval.py"):
        shutil.copy(ROOT / program, tmp_path)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
    }
    printed = ""
    for language, text in re.findall(
        r"^```(\w+)\n(.*?)^```$", OWN_TASK.read_text("utf-8"), re.DOTALL | re.MULTILINE
    ):
        if language == "python":
            file = re.match(r"# (\w+\.py)\n", text)
            assert file is not None, text
            (tmp_path / file[1]).write_text(text, encoding="utf-8")
        for command in text.splitlines() if language == "sh" else ():
            result = subprocess.run(
                [*command.split(), *(SMALLER if "train.py" in command else ())],
                capture_output=True,
                text=True,
                cwd=tmp_path,
                env=environment,
                timeout=280,
            )
            assert result.returncode == 0, command + result.stdout + result.stderr
            printed += result.stdout

    assert "100 tickets, {'tickets_right': 1.0}" in printed
    assert re.search(r"tickets_right +\d\.\d+", printed)
    scores = json.loads((tmp_path / "runs/mine/test/metrics.json").read_text())["metrics"]
    assert scores.keys() == {"exact_match", "digits", "numbers"}
    assert scores["numbers"] == 20
    answers = (tmp_path / "runs/mine/answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(answers) == 20
    for line in answers:
        kind = json.loads(line)["subtasks"][1]
        assert kind["prediction"] in kind["allowed"]
