"""The documentation as a site: every page is in it, every link leads somewhere, every equation is drawn, every message
quoted is printed. What the pages tell to run: test_documented_code.py."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def test_every_page_for_users_is_in_the_navigation():
    class Loader(yaml.SafeLoader):
        """Values from the environment are no concern of this test."""

    Loader.add_constructor("!ENV", lambda loader, node: None)

    def pages(entry) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [page for inner in (entry.values() if isinstance(entry, dict) else entry) for page in pages(inner)]

    listed = pages(yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)["nav"])
    notebooks = [path.with_suffix(".md").name for path in DOCS.glob("*.ipynb")]
    assert sorted(listed) == sorted([path.name for path in DOCS.glob("*.md")] + notebooks)


def test_pages_for_users_are_short():
    others = ("configuration.md", "extending.md", "architecture.md", "reference.md")
    pages = [ROOT / "README.md", *(page for page in DOCS.glob("*.md") if page.name not in others)]
    assert sum(len(page.read_text().splitlines()) for page in pages) <= 1700


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="pip install 'fdtrain[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert "FullDiffusion" in (tmp_path / "site" / "index.html").read_text()
    assert "perturb" in (tmp_path / "site" / "reference" / "index.html").read_text()
    tour = (tmp_path / "site" / "tour" / "index.html").read_text()
    assert "A tour of fdtrain" in tour
    assert tour.count('src="data:image/png;base64,') >= 5
    # Every equation is drawn, and no page asks another server for anything.
    method = (tmp_path / "site" / "method" / "index.html").read_text()
    equations = re.findall(r'<div class="equation".*?<title>(.+?)</title><path d="M[^"]+"/></svg></div>', method)
    assert len(equations) == (DOCS / "method.md").read_text().count("```math\n") > 10
    assert re.findall(r'<(?:script|img|link)[^>]*(?:src|rel="stylesheet" href)="(?:https?:)?//', method) == []


def test_every_message_of_the_troubleshooting_page_is_printed_by_the_program():
    source = " ".join(path.read_text() for path in (ROOT / "fdtrain").rglob("*.py"))
    # Neighbouring string literals are one message.
    source = re.sub(r'"\s*\n?\s*f?"', "", source)
    quoted = re.findall(r"^\| `([^`]+)` \|", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(quoted) > 20
    assert [message for message in quoted if message not in source] == []


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda page: page.stem)
def test_files_that_commands_name_exist(page):
    """Scripts and configurations in the commands of the pages."""
    blocks = "\n".join(re.findall(r"```\n(.*?)```", page.read_text(), re.DOTALL))
    named = set(re.findall(r"\b((?:tools|benchmarks|configs|fdtrain|launch)/[\w/.-]+\.(?:py|yaml|sh))\b", blocks))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_test_that_proves_a_wish_exists():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (DOCS / "lab" / "wishes.md").read_text())
    assert len(named) >= 15
    assert [name for file, name in named if f"def {name}(" not in (ROOT / file).read_text()] == []
