"""Run a notebook and store what its cells show: ``python tools/notebook.py docs/tour.ipynb``.

Its cells run in this process, in the present folder, without Jupyter. One that fails ends it with its trace.
"""

import argparse
import ast
import base64
import io
import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import interpreter  # noqa: F401
import matplotlib
from matplotlib import pyplot


class Screen(io.StringIO):
    """What is printed, as on a terminal: what follows a carriage return replaces what is before it."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def text(self) -> str:
        return "\n".join(re.sub(r".*\r(?=.)", "", line).rstrip() for line in self.getvalue().split("\n")).strip()


def shell(command: str) -> None:
    """A line that begins with ``!``."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    said = subprocess.check_output(command, shell=True, stderr=subprocess.STDOUT, env={**os.environ, "PATH": path})
    print(said.decode())


def run(source: str, name: str, names: dict[str, Any]) -> list[dict[str, Any]]:
    """What a cell shows: text, figures, and the value of its last line."""
    code = ast.parse(re.sub(r"^!(.*)$", lambda line: f"shell({line[1]!r})", source, flags=re.MULTILINE))
    last = None if source.endswith(";") else code.body[-1]
    if isinstance(last, ast.Expr):
        code.body.pop()
    with redirect_stdout(Screen()) as screen, redirect_stderr(screen):
        exec(compile(code, name, "exec"), names)
        value = eval(compile(ast.Expression(last.value), name, "eval"), names) if isinstance(last, ast.Expr) else None
    outputs: list[dict[str, Any]] = []
    if text := screen.text():
        outputs.append({"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)})
    for number in pyplot.get_fignums():
        pyplot.figure(number).savefig(file := io.BytesIO(), dpi=72, bbox_inches="tight")
        outputs.append(_displayed("figure", file.getvalue()))
    pyplot.close("all")
    if value is not None:
        outputs.append(_displayed(repr(value), getattr(value, "_repr_png_", lambda: None)()))
    return outputs


def _displayed(text: str, picture: bytes | None) -> dict[str, Any]:
    pictures = {"image/png": base64.b64encode(picture).decode()} if picture else {}
    return {"output_type": "display_data", "data": {"text/plain": text, **pictures}, "metadata": {}}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--to", type=Path, help="the file to write (default: the same)")
    arguments = parser.parse_args()
    matplotlib.use("agg")
    content, names = json.loads(arguments.notebook.read_text()), {"__name__": "__main__", "shell": shell}
    cells = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells, 1):
        source = "".join(cell["source"])
        print(f"{number}/{len(cells)}  {source.splitlines()[0]}", flush=True)
        cell["outputs"] = run(source, f"{arguments.notebook}, cell {number}", names)
        cell["execution_count"] = number
    (arguments.to or arguments.notebook).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
