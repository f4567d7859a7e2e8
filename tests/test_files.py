import multiprocessing
import re

import pytest

from fdtrain import files
from fdtrain.errors import UserError


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


def test_two_launches_do_not_work_in_one_folder(tmp_path):
    with (
        files.exclusive(tmp_path),
        pytest.raises(UserError, match=r"is being packed by another launch\. Wait for it, or stop it"),
        files.exclusive(tmp_path, "packed"),
    ):
        pass
    with files.exclusive(tmp_path):
        pass


def _hold(folder, held):
    with files.exclusive(folder):
        held.set()
        held.wait()
        multiprocessing.Event().wait()


def test_a_killed_process_releases_its_folder(tmp_path):
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=_hold, args=(tmp_path, held))
    process.start()
    assert held.wait(60)
    with pytest.raises(UserError, match="being written"), files.exclusive(tmp_path):
        pass
    process.kill()
    process.join()
    with files.exclusive(tmp_path):
        pass


def test_a_text_from_elsewhere_as_a_part_of_a_path():
    for name in ("test", "digits-features", "_x.1", "a" * 100):
        assert files.as_name(name) == name
    others = ["org/digits", "org-digits ", "org\\digits", "../x", ".", "..", "", "a\n", "数字", "字数", "\ud800"]
    others.append("a" * 101)
    made = [files.as_name(text) for text in others]
    assert all(re.fullmatch(files.NAME, name) and len(name) < 120 for name in made)
    assert len({*made, "org-digits"}) == len(others) + 1
