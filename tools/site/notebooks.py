"""Notebooks of the documentation as pages of the site, with what their cells show: a hook of mkdocs (mkdocs.yml)."""

import json
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File


def on_files(files: Any, config: Any) -> Any:
    """Beside each notebook, which can be fetched, a page of its name."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        page = file.src_uri.removesuffix(".ipynb") + ".md"
        files.append(File.generated(config, page, content=markdown(Path(file.abs_src_path))))
    return files


def markdown(notebook: Path) -> str:
    parts = []
    for cell in json.loads(notebook.read_text())["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        parts += map(_output, cell.get("outputs", []))
    return "\n\n".join(parts)


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        return f"![{data['text/plain']}](data:image/png;base64,{data['image/png']})"
    return f"```text\n{''.join(output.get('text') or data['text/plain'])}\n```"
