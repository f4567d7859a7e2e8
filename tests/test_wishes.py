"""docs/lab/wishes.md names tests; each exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_test_that_proves_a_wish_exists():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "lab" / "wishes.md").read_text())
    missing = [name for file, name in named if f"def {name}(" not in (ROOT / file).read_text()]
    assert len(named) >= 15
    assert not missing
