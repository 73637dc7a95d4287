"""The notebooks become pages of the site, with the outputs that are in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

_FOLDER = Path(__file__).parent.parent / "notebooks"


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """The files of the site, and a page for every notebook.

    Args:
        files: Of the folder of pages.
        config: Of the site.
        **_: What MkDocs hands over besides.
    """
    for path in sorted(_FOLDER.glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=page(json.loads(path.read_text()))))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with links to notebooks, which lie beside the folder of pages, as links to their pages.

    Args:
        markdown: Of the page.
        **_: What MkDocs hands over besides.
    """
    for path in _FOLDER.glob("*.ipynb"):
        markdown = markdown.replace(f"](../notebooks/{path.name})", f"](notebooks/{path.stem}.md)")
    return markdown


def page(notebook: dict[str, Any]) -> str:
    """A notebook as Markdown.

    Args:
        notebook: As its file has it.
    """
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        parts += [_shown(output) for output in cell.get("outputs", [])]
    return "\n\n".join(parts) + "\n"


def _shown(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    for kind in ("image/png", "image/gif"):
        if kind in data:
            return f'<img alt="" src="data:{kind};base64,{"".join(data[kind]).strip()}">'
    if "text/markdown" in data:
        return "".join(data["text/markdown"])
    text = "".join(output.get("text", data.get("text/plain", ""))).strip("\n")
    return f"```text\n{text}\n```" if text else ""
