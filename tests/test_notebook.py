"""docs/tour.ipynb, executed, shows what is stored in it: text where there was text, pictures where there were some."""

import json
import subprocess
import sys

from conftest import ROOT, environment

TOUR = ROOT / "docs" / "tour.ipynb"


def shown(path) -> list[list[str]]:
    cells = json.loads(path.read_text())["cells"]
    return [[max(output.get("data", ["text"])) for output in cell.get("outputs", [])] for cell in cells]


def test_the_tour(tmp_path):
    """With a tenth of its steps."""
    text = TOUR.read_text()
    short = tmp_path / "short.ipynb"
    short.write_text(
        text.replace('\\"steps\\": 200,', '\\"steps\\": 20,').replace('evaluate_every\\": 50', 'evaluate_every\\": 10')
    )
    assert len(short.read_text()) == len(text) - 1
    command = [sys.executable, ROOT / "tools" / "notebook.py", short, "--to", tmp_path / "tour.ipynb"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert shown(tmp_path / "tour.ipynb") == shown(TOUR)
    # GitHub shows it at once.
    assert TOUR.stat().st_size < 300_000
