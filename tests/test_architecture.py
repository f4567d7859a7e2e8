"""docs/architecture.md lists every file of the library, and no other."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
HEADING = re.compile(r"^\| `([\w/]+/)` \| \|$")
ROW = re.compile(r"^\| `([\w/]+\.py)` \| (.+) \|$")


def listed(page: str) -> list[tuple[str, str]]:
    """Paths below ``fdtrain/`` and purposes; a table's paths begin at the folder in its heading."""
    folder, rows = "", []
    for line in page.split("## Files")[1].splitlines():
        if heading := HEADING.match(line):
            folder = heading[1].removeprefix("fdtrain/")
        elif row := ROW.match(line):
            rows.append((folder + row[1], row[2]))
    return rows


def test_every_file_is_listed_once_with_its_purpose():
    rows = listed((ROOT / "docs" / "architecture.md").read_text())
    files = [path.relative_to(ROOT / "fdtrain").as_posix() for path in (ROOT / "fdtrain").rglob("*.py")]
    assert sorted(path for path, _ in rows) == sorted(path for path in files if not path.endswith("__init__.py"))
    assert all(purpose.endswith(".") and len(purpose) > 20 for _, purpose in rows)
