import re

import pytest

from fdtrain import files


def test_a_file_is_there_in_full_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "a.txt"
    files.write_text(path, "one\n")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        files.write_atomically(path, fail)
    assert path.read_text() == "one\n"
    files.write_text(path, "two\n")
    assert path.read_text() == "two\n"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.txt"]


def test_a_text_from_elsewhere_as_a_part_of_a_path():
    for name in ("test", "digits-features", "_x.1", "a" * 100):
        assert files.as_name(name) == name
    others = ["org/digits", "org-digits ", "org\\digits", "../x", ".", "..", "", "a\n", "数字", "字数", "\ud800"]
    others.append("a" * 101)
    made = [files.as_name(text) for text in others]
    assert all(re.fullmatch(files.NAME, name) and len(name) < 120 for name in made)
    assert len({*made, "org-digits"}) == len(others) + 1
