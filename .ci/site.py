"""Hooks of mkdocs: README, CONTRIBUTING and CHANGELOG as pages, and links that leave docs/ as plain words."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie at the root of the repository."""
    for source, target in PAGES.items():
        files.append(File.generated(config, target, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point every relative link at a page of the site, or keep its words alone where its target is not on it."""
    names = {target: source for source, target in PAGES.items()}
    source = names.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return LINK.sub(lambda link: _link(link, posixpath.dirname(source), page.file.src_uri, files), markdown)


def _link(link: re.Match[str], folder: str, here: str, files: Files) -> str:
    sign, words, target, anchor = link.groups()
    path = posixpath.normpath(posixpath.join(folder, target))
    inside = PAGES.get(path, path.removeprefix("docs/") if path.startswith("docs/") else "")
    if not inside or files.get_file_from_path(inside) is None:
        if not (ROOT / path).exists():
            raise ValueError(f"{here}: the link to {target} leads nowhere")
        return words
    return f"{sign}[{words}]({posixpath.relpath(inside, posixpath.dirname(here) or '.')}{anchor or ''})"
