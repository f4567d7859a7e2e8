"""``data.path`` in its forms, and what is said when dataset.json and the shards disagree."""

import shutil

import pytest
from flaky import Flaky
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import pack, refused

from fdtrain.data import braces
from fdtrain.data.braces import expand, max_names
from fdtrain.data.location import locate
from fdtrain.errors import UserError


def test_expand():
    assert expand("x", ["a-{08..11}.tar", "{x,y}/b"]) == [*(f"a-{i:02}.tar" for i in range(8, 12)), "x/b", "y/b"]
    assert expand("x", ["{a..c}{3..1}"]) == [f"{a}{i}" for a in "abc" for i in (3, 2, 1)]


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("{a,b}" * 40, "too many names"),
        ("{0..99999999999}", "too many names"),
        ("{a..z}" * 10, "too many names"),
        ("{0.." + "9" * 5000 + "}", "Exceeds the limit"),
        ("{" * 50_000, "braces within braces"),
        ("{a,{b,c}}", "braces within braces"),
        ("train-{000..099.tar", "has a '{' without its other"),
        ("train-000..099}.tar", "has a '}' without its other"),
    ],
    ids=lambda text: text[:20],
)
def test_patterns_that_are_refused(pattern, problem):
    with refused(problem):
        expand("x", [pattern])


def test_the_bound_is_of_all_lines_together(monkeypatch):
    line = "{0..9}-" + "x" * 90
    monkeypatch.setattr(braces, "MAX_CHARACTERS", 10 * 10 * len(line))
    assert len(expand("x", [line] * 10)) == 100
    with refused("too many names"):
        expand("x", [line] * 11)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab,.0123{}\\-", max_size=24))
def test_no_pattern_stands_for_more_names_than_counted(pattern):
    try:
        if max_names(pattern) > 10_000:
            return
        names = expand("x", [pattern])
    except (UserError, ValueError):
        return
    assert len(names) <= max_names(pattern)


@pytest.fixture
def folder(tmp_path):
    pack(tmp_path / "set", (2, 3, 4, 0, 5))
    return tmp_path / "set"


def files(data, split="train") -> list[str]:
    return [placed.shard.file for placed in data.split(split)]


def test_folders_and_patterns(folder):
    """The shards of a pattern are in the order of dataset.json."""
    assert files(locate(folder)) == [f"train-{i:06d}.tar" for i in (0, 1, 2, 4)]
    assert files(locate(f"{folder}/")) == files(locate(folder))
    assert files(locate(f"{folder}/train-{{000002..000001}}.tar")) == ["train-000001.tar", "train-000002.tar"]


def test_list_file(folder, tmp_path):
    shutil.move(folder / "train-000004.tar", tmp_path)
    lines = ["# two here, one there", "", "train-{000000..000001}.tar", f"{tmp_path}/train-000004.tar"]
    (folder / "shards.txt").write_text("\n".join(lines))
    found = locate(folder / "shards.txt").split("train")
    here = [f"{folder}/train-{i:06d}.tar" for i in range(2)]
    assert [placed.place for placed in found] == [*here, f"{tmp_path}/train-000004.tar"]
    assert sum(placed.shard.images for placed in found) == 10


def test_a_split_that_a_pattern_does_not_name_lies_beside(digits):
    data = locate(f"{digits}/train-{{000000..000001}}.tar")
    assert len(data.split("train")) == 2
    assert len(data.split("test")) == 3


def test_pipes_only_where_allowed(folder):
    (folder / "shards.txt").write_text(f"pipe:cat {folder}/train-{{000000..000002}}.tar")
    with refused("allow_pipe"):
        locate(folder / "shards.txt")
    [first, *_] = locate(folder / "shards.txt", allow_pipe=True).split("train")
    assert first.place == f"pipe:cat {folder}/train-000000.tar"
    with refused("list file"):
        locate("pipe:cat x-{0..3}.tar", allow_pipe=True)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda f: (f / "train-000001.tar").unlink(), "train-000001.tar is listed in dataset.json but missing"),
        (lambda f: (f / "train-000001.tar").write_bytes(b""), "but no file of .* bytes: cut short"),
        (lambda f: (f / "train-000001.tar").open("ab").write(b"x"), "cut short or changed"),
        (lambda f: (f / "train-000009.tar").touch(), "holds train-000009.tar, which dataset.json does not list"),
    ],
)
def test_what_is_wrong_with_a_folder(folder, change, complaint):
    change(folder)
    with refused(complaint):
        locate(folder).check(["train"])


def test_a_pattern_must_agree_with_dataset_json(folder):
    with refused(r"names train-000005\.tar, which dataset\.json does not list"):
        locate(f"{folder}/train-{{000000..000007}}.tar")
    (folder / "shards.txt").write_text("train-000000.tar\ntrain-000000.tar\n")
    with refused("twice"):
        locate(folder / "shards.txt")
    (folder / "shards.txt").write_text("\n")
    with refused("names no shard"):
        locate(folder / "shards.txt")


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("", "data.path is empty"),
        ("  ", "data.path is empty"),
        ("x" * 5000 + ".txt", r"cannot read x+\.\.\. \(File name too long\)"),
        ("x" * 5000 + "/{0..3}", r"cannot read x+\.\.\. \(File name too long\)"),
    ],
    ids=lambda text: text[:20],
)
def test_paths_that_are_none(path, complaint):
    with refused(complaint):
        locate(path)


def test_a_list_of_signed_urls_is_known_by_file_names(folder, tmp_path):
    with Flaky(folder).serve() as url:
        (folder / "shards.txt").write_text(f"{url}/train-{{000000..000001}}.tar?sig=a/b.tar\n")
        data = locate(folder / "shards.txt")
        assert [placed.place for placed in data.split("train")] == [
            f"{url}/train-{i:06d}.tar?sig=a/b.tar" for i in range(2)
        ]
        # One signature for the whole folder.
        [first, *_] = locate(f"{url}/?sig=a/b").split("train")
        assert first.place == f"{url}/train-000000.tar?sig=a/b"
        assert len(locate(f"{url}/train-{{000000..000001}}.tar?sig=a").split("train")) == 2


def test_a_split_without_images(tmp_path):
    pack(tmp_path / "empty", (0,))
    with refused("holds no images"):
        locate(tmp_path / "empty").split("train")
