"""``data.path`` in its forms, and what is said when dataset.json and the shards disagree."""

import shutil

import pytest
from flaky import Flaky
from packed import pack

from fdtrain.data.location import locate
from fdtrain.errors import UserError


@pytest.fixture
def folder(tmp_path):
    pack(tmp_path / "set", (2, 3, 4, 0, 5))
    return tmp_path / "set"


def files(data, split="train") -> list[str]:
    return [placed.shard.file for placed in data.split(split)]


def test_folder(folder):
    assert files(locate(folder)) == [f"train-{i:06d}.tar" for i in (0, 1, 2, 4)]
    assert files(locate(f"{folder}/")) == files(locate(folder))


def test_brace_pattern_selects_shards_in_the_order_of_dataset_json(folder):
    data = locate(f"{folder}/train-{{000002..000001}}.tar")
    assert files(data) == ["train-000001.tar", "train-000002.tar"]


def test_list_file(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.move(folder / "train-000004.tar", elsewhere)
    lines = ["# two here, one there", "", "train-{000000..000001}.tar", f"{elsewhere}/train-000004.tar"]
    (folder / "shards.txt").write_text("\n".join(lines))
    data = locate(folder / "shards.txt")
    assert [placed.place for placed in data.split("train")] == [
        f"{folder}/train-000000.tar",
        f"{folder}/train-000001.tar",
        f"{elsewhere}/train-000004.tar",
    ]
    assert sum(placed.shard.images for placed in data.split("train")) == 10


def test_a_split_that_a_pattern_does_not_name_lies_beside(digits):
    data = locate(f"{digits}/train-{{000000..000001}}.tar")
    assert len(data.split("train")) == 2
    assert len(data.split("test")) == 3


def test_pipes_only_where_allowed(folder):
    (folder / "shards.txt").write_text(f"pipe:cat {folder}/train-{{000000..000002}}.tar")
    with pytest.raises(UserError, match="allow_pipe"):
        locate(folder / "shards.txt")
    [first, *_] = locate(folder / "shards.txt", allow_pipe=True).split("train")
    assert first.place == f"pipe:cat {folder}/train-000000.tar"
    with pytest.raises(UserError, match="list file"):
        locate("pipe:cat x-{0..3}.tar", allow_pipe=True)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda f: (f / "train-000001.tar").unlink(),
            "train-000001.tar is listed in dataset.json but missing",
        ),
        (lambda f: (f / "train-000001.tar").write_bytes(b""), "but no file of .* bytes: cut short"),
        (lambda f: (f / "train-000001.tar").open("ab").write(b"x"), "cut short or changed"),
        (lambda f: (f / "train-000009.tar").touch(), "holds train-000009.tar, which dataset.json does not list"),
    ],
)
def test_what_is_wrong_with_a_folder(folder, change, complaint):
    change(folder)
    with pytest.raises(UserError, match=complaint) as error:
        locate(folder).check(["train"])
    assert "\n" not in str(error.value)


def test_a_pattern_must_agree_with_dataset_json(folder):
    with pytest.raises(UserError, match=r"names train-000005\.tar, which dataset\.json does not list"):
        locate(f"{folder}/train-{{000000..000007}}.tar")
    (folder / "shards.txt").write_text("train-000000.tar\ntrain-000000.tar\n")
    with pytest.raises(UserError, match="twice"):
        locate(folder / "shards.txt")
    (folder / "shards.txt").write_text("\n")
    with pytest.raises(UserError, match="names no shard"):
        locate(folder / "shards.txt")


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("", "data.path is empty"),
        ("  ", "data.path is empty"),
        ("set/train-{000..003.tar", "has a '{' without its other"),
        ("x" * 5000 + ".txt", r"cannot read x+\.\.\. \(File name too long\)"),
        ("x" * 5000 + "/{0..3}", r"cannot read x+\.\.\. \(File name too long\)"),
    ],
    ids=lambda text: text[:20],
)
def test_paths_that_are_none(path, complaint):
    with pytest.raises(UserError, match=complaint) as error:
        locate(path)
    assert len(str(error.value)) < 400


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


def test_unknown_and_empty_splits(folder, tmp_path):
    with pytest.raises(UserError, match="no split 'valid' \\(it has: train\\)"):
        locate(folder).split("valid")
    pack(tmp_path / "empty", (0,))
    with pytest.raises(UserError, match="holds no images"):
        locate(tmp_path / "empty").split("train")
