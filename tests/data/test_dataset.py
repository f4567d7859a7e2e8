"""dataset.json is checked as it is read, and written in one rename."""

import json
import os
from functools import partial

import pytest
from packed import pack

from fdtrain.data import fetch
from fdtrain.data.dataset import FILE, parse_description, read_description, write_description
from fdtrain.errors import UserError


def test_what_is_written_is_read(tmp_path):
    description = pack(tmp_path / "set", (2, 3), size=5, levels=200)
    assert read_description(tmp_path / "set") == description
    assert description.images("train") == 5
    assert description.shape == (3, 5, 5)
    assert description.dims == 75
    write_description(tmp_path, description)
    # Of earlier versions.
    content = json.loads((tmp_path / FILE).read_text()) | {"preparation": {"method": "x", "crops": 1}}
    assert parse_description(json.dumps(content), "there").splits == description.splits
    assert [path.name for path in tmp_path.glob(".*")] == []


def shard(**changes) -> dict:
    return {"splits": {"train": [{"file": "x", "images": 1, "bytes": 1, "sha256": "0" * 64} | changes]}}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"version": 99}, "version 99, this fdtrain reads 1"),
        ({"levels": 1}, "levels: Input should be greater"),
        ({"size": "big"}, "size: Input should be a valid integer"),
        ({"colour": "red"}, "colour: Extra inputs"),
        ({"version": "9" * 100_000}, "version '99"),
        ({"version": [[]] * 100_000}, r"version \[\["),
        ({"x" * 100_000: 1}, r"xxx\.\.\.: Extra inputs"),
        ({"\x1b[2J\n": 1}, "Extra inputs"),
        ({str(i): i for i in range(100_000)}, "an object of 100009 keys"),
        ({"size": float("nan")}, "size: "),
        ({"name": "x" * 10_000}, "name: String should have at most"),
        ({"name": "a\0b"}, "name: String should match"),
        ({"name": "\ud800"}, "name: Input should be"),
        ({"classes": ["x" * 2000]}, "classes.0: String should have at most"),
        ({"classes": [1] * 1_000_000}, "classes.0: Input should be a valid string"),
        ({"splits": {"a\0": []}}, "splits.a"),
        ({"splits": {"x/../../../victim/settings": []}}, "splits.x/../../../victim/settings"),
        ({"splits": {"train": [1] * 1_000_000}}, "splits.train.0: Input"),
        *((shard(file=file), "file: String should match") for file in ("a\0", "..", "../../x", "/etc/x", "a\\b", "")),
        (shard(images=2**80), "images: "),
        (shard(bytes=2**62), "bytes: Input"),
        *(
            (shard(place=place), "place: ")
            for place in ("pipe:x", "https://h/0.tar?sig=x", "https://u:p@h", "a\nb", "")
        ),
    ],
)
def test_names_the_key_that_is_wrong(tmp_path, change, complaint):
    pack(tmp_path / "set", (2,))
    content = json.loads((tmp_path / "set" / FILE).read_text()) | change
    with pytest.raises(UserError, match=complaint) as error:
        parse_description(json.dumps(content), "there")
    assert str(error.value).startswith("there/dataset.json")
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("splits", [{"train": 2}, {"train": 1, "test": 1}])
def test_a_shard_listed_twice(tmp_path, splits):
    """In a split: read twice an epoch; in two: what is tested on was trained on."""
    pack(tmp_path / "set", (2,))
    content = json.loads((tmp_path / "set" / FILE).read_text())
    [shard] = content["splits"]["train"]
    content["splits"] = {split: [shard] * times for split, times in splits.items()}
    with pytest.raises(UserError, match=r"lists train-000000\.tar twice\. Its samples would come twice"):
        parse_description(json.dumps(content), "there")


def test_a_file_that_is_no_description(tmp_path, monkeypatch):
    pack(tmp_path / "set", (2,))
    file = tmp_path / "set" / FILE
    monkeypatch.setattr(fetch, "MAX_TEXT_BYTES", 100)
    with pytest.raises(UserError, match=r"dataset\.json is longer than 100 bytes"):
        read_description(tmp_path / "set")
    for make in (os.mkfifo, partial(os.symlink, "/dev/zero"), os.mkdir):
        file.unlink()
        make(file)
        with pytest.raises(UserError, match="no regular file"):
            read_description(tmp_path / "set")


@pytest.mark.parametrize("folder", ["x" * 5000, "a\0b", "/dev/null", "/dev/null/x"])
def test_a_path_that_is_none(folder):
    with pytest.raises(UserError) as error:
        read_description(folder)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 300


def test_missing(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=rf"no folder {folder} with a dataset\.json\. Pack a data set into it"):
            read_description(folder)
