"""README and the pages of the documentation, as tests read them."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")],
    key=lambda page: page.name,
)


def blocks(page: Path, language: str) -> list[str]:
    """The content of the page's fenced blocks of a language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)


def lines(page: Path) -> list[str]:
    """The lines of the page's shell blocks, continued lines joined."""
    return "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()


def commands(page: Path) -> list[list[str]]:
    """The words of every shell line that runs a program of this project."""
    words = [shlex.split(line, comments=True) for line in lines(page)]
    return [command for command in words if command[:1] in (["python"], ["pid-jax"])]
