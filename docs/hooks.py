"""MkDocs hooks: pages and pictures of the repository that lie outside `docs/`."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
PICTURES = ("benchmarks/results/growth_cpu_2_cores.png",)


def on_files(files: Files, config: Any) -> Files:
    for page, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        # A link into docs/ is one beside the page.
        text = re.sub(r"\]\(docs/", "](", text).replace("](CONTRIBUTING.md", "](contributing.md")
        files.append(File.generated(config, page, content=text))
    for picture in PICTURES:
        path = ROOT / picture
        files.append(File.generated(config, path.name, abs_src_path=str(path)))
    return files
