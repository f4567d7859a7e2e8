"""``dataset.json`` and the indices of shards: checked as they are read, written in one rename, and an index stands for
the scan of its shard's headers."""

import json
import os
import shutil
import zlib
from array import array
from functools import partial

import numpy as np
import pytest
from packed import describe, npy, pack, refused, sample, write_tar

from fdtrain.data import fetch, shard_index, shard_table
from fdtrain.data.dataset import FILE, Shard, fingerprint, parse_description, read_description, write_description
from fdtrain.data.decode import IMAGES
from fdtrain.data.location import locate
from fdtrain.data.shards import OpenShard, ShardReader
from fdtrain.data.split import Split


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


@pytest.fixture
def content(tmp_path):
    """Of the dataset.json of a small data set."""
    pack(tmp_path / "set", (2,))
    return json.loads((tmp_path / "set" / FILE).read_text())


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
        *((shard(place=to), "place: ") for to in ("pipe:x", "https://h/0.tar?sig=x", "https://u:p@h", "a\nb", "")),
    ],
)
def test_names_the_key_that_is_wrong(content, change, complaint):
    with refused(complaint) as error:
        parse_description(json.dumps(content | change), "there")
    assert str(error.value).startswith("there/dataset.json")


@pytest.mark.parametrize("splits", [{"train": 2}, {"train": 1, "test": 1}])
def test_a_shard_listed_twice(content, splits):
    """In a split: read twice an epoch; in two: what is tested on was trained on."""
    [shard] = content["splits"]["train"]
    content["splits"] = {split: [shard] * times for split, times in splits.items()}
    with refused(r"lists train-000000\.tar twice\. Its samples would come twice"):
        parse_description(json.dumps(content), "there")


def test_a_file_that_is_no_description(content, tmp_path, monkeypatch):
    file = tmp_path / "set" / FILE
    monkeypatch.setattr(fetch, "MAX_TEXT_BYTES", 100)
    with refused(r"dataset\.json is longer than 100 bytes"):
        read_description(tmp_path / "set")
    for make in (os.mkfifo, partial(os.symlink, "/dev/zero"), os.mkdir):
        file.unlink()
        make(file)
        with refused("no regular file"):
            read_description(tmp_path / "set")


@pytest.mark.parametrize("folder", ["x" * 5000, "a\0b", "/dev/null", "/dev/null/x"])
def test_a_path_that_is_none(folder):
    with refused():
        read_description(folder)


INDEX = "index/train-000003.tar.idx"


@pytest.fixture
def folder(digits, tmp_path):
    return shutil.copytree(digits, tmp_path / "digits")


def read(folder, shard=3, **options) -> tuple[np.ndarray, np.ndarray]:
    data = locate(folder)
    reader = ShardReader(data.split("train"), data.description, **options)
    images, labels, broken = reader.read([(shard, i) for i in range(100)])
    assert not broken
    return images, labels


def test_the_index_gives_what_the_headers_give(folder, monkeypatch):
    by_headers = read(folder, verify=True)
    with monkeypatch.context() as patch:
        patch.setattr("fdtrain.data.members.scan", None)
        assert all(map(np.array_equal, by_headers, read(folder)))
    shutil.rmtree(folder / "index")
    assert all(map(np.array_equal, by_headers, read(folder)))


def change(data: bytes, **header) -> bytes:
    """Another index whose checksum is right."""
    line, _, columns = data[:-4].partition(b"\n")
    data = json.dumps(json.loads(line) | header).encode() + b"\n" + columns
    return data + zlib.crc32(data).to_bytes(4, "little")


def columns(data: bytes, at: int, value: int) -> bytes:
    """Another index, with the last number of a column (of eight bytes; from the end) changed."""
    body = bytearray(data[:-4])
    end = len(body) - at * 8 * 100
    body[end - 8 : end] = value.to_bytes(8, "little", signed=True)
    return bytes(body) + zlib.crc32(bytes(body)).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[:-100], "checksum"),
        (lambda data: data[:1000] + bytes([data[1000] ^ 1]) + data[1001:], "checksum"),
        (lambda data: change(data, sha256="0" * 64), "of another content"),
        (lambda data: change(data, samples=99), "99 samples, 100 in dataset.json"),
        (lambda data: change(data, format="fdtrain index 9"), "for Header format"),
        (lambda data: change(data, images=["tiff"]), "which are none of the data set"),
        (lambda data: change(data, images=[]), "not within the shard"),
        (lambda data: change(data, named={"suffix": "t", "field": None, "classes": ["a"]}), "labels of other members"),
        (lambda data: columns(data, 0, -1), "not within the shard"),
        (lambda data: columns(data, 0, 7), "a member of another size"),
        (lambda data: columns(data, 1, 2**63 - 1), "not within the shard"),
        (lambda data: columns(data, 1, 0), "not within the shard"),
        (lambda data: columns(data, 1, 1024), "a member of another size|no tar header"),
    ],
)
def test_an_index_that_does_not_fit(folder, damage, reason):
    path = folder / INDEX
    path.write_bytes(damage(path.read_bytes()))
    with refused(reason) as error:
        read(folder)
    assert f"{path} is no index of this train-000003.tar" in str(error.value)
    assert len(str(error.value)) < 400 + len(str(path))
    read(folder, shard=4)


def test_a_shard_that_is_changed_within_its_length(folder):
    path = folder / "train-000003.tar"
    data = path.read_bytes()
    path.write_bytes(b"\0" * 512 + data[:-512])
    with refused(r"no index of this train-000003\.tar \(no tar header"):
        read(folder)


def test_samples_without_image_or_label(tmp_path):
    (tmp_path / "a").mkdir()
    unlabelled = "2.npy", npy(np.zeros((4, 4, 3), np.uint8))
    members = [("0.txt", b"x"), *sample(1), unlabelled, ("3.cls", b"cat"), *sample(4)]
    write_tar(tmp_path / "a" / "train-000000.tar", members)
    description = describe(tmp_path / "a", {"train": {"train-000000.tar": 5}})
    [placed] = locate(tmp_path / "a").split("train")
    scanned = OpenShard(placed, None).samples
    assert scanned.label.tolist() == [-1, 1, -1, -2, 4]
    content = shard_index.content(placed.shard, IMAGES, array("q", np.stack(scanned, 1).ravel().tolist()))
    shard_index.write(shard_index.place(tmp_path / "a", placed.shard.file), content)
    assert all(map(np.array_equal, OpenShard(placed, None).samples, scanned))
    assert description.splits["train"] == [placed.shard]


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(shard_table, "INLINE", 2)
    monkeypatch.setattr(shard_table, "PART", 4)


def test_many_shards_are_files_of_rows(tmp_path, short, monkeypatch):
    """Described in parts they are the same data set, wherever its description goes."""
    inline = pack(tmp_path / "a", [2, 0, 3, 1, 2, 2, 1, 3, 1], size=5)
    monkeypatch.setattr(shard_table, "INLINE", 100)
    description = read_description(tmp_path / "a")
    listed = list(description.splits["train"])
    content = json.loads((tmp_path / "a" / FILE).read_text())
    assert [part["shards"] for part in content["splits"]["train"]["parts"]] == [4, 4, 1]
    assert (content["version"], description.images("train"), listed) == (2, 15, list(inline.splits["train"]))
    assert fingerprint(description.splits["train"]) == fingerprint(inline.splits["train"])
    write_description(tmp_path, description)
    assert list(read_description(tmp_path).splits["train"]) == listed
    assert json.loads((tmp_path / FILE).read_text())["version"] == 1
    parts, lists = Split(tmp_path / "a", "train"), [s for s in listed if s.images]
    assert len(parts) == sum(shard.images for shard in lists)
    assert [int(label) for label in parts.batch(range(15))[1]] == [i % 10 for i in range(15)]


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda file: file.unlink(), r"cannot read .*train-000001\.shards \(No such file"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "another index/train-000001.shards than there is"),
        (lambda file: file.write_bytes(file.read_bytes() + b"x"), "longer than"),
        (lambda file: file.write_bytes(file.read_bytes().replace(b"train-000006", b"train-000009")), "another index"),
    ],
)
def test_damaged_rows(tmp_path, short, damage, complaint):
    pack(tmp_path / "a", [1] * 9)
    damage(tmp_path / "a" / "index" / "train-000001.shards")
    with refused(complaint):
        locate(tmp_path / "a")


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"file": "../x"}, "shard 3: String should match"),
        ({"images": -1}, "less than no images"),
        ({"place": "pipe:rm x"}, "commands"),
        ({"file": "train-000001.tar"}, r"lists train-000001\.tar twice"),
    ],
)
def test_rows_that_are_no_shards(tmp_path, short, row, complaint):
    """Their checksum is right."""
    description = pack(tmp_path / "a", [1] * 5)
    shards = list(description.splits["train"])
    shards[3] = Shard.model_construct(**shards[3].model_dump() | row)
    write_description(tmp_path / "a", description, {"train": shards})
    with refused(complaint):
        list(read_description(tmp_path / "a").splits["train"])


def test_absurd_parts(tmp_path, short):
    pack(tmp_path / "a", [1] * 9)
    content = json.loads((tmp_path / "a" / FILE).read_text())
    for change in ({"shards": 2**24, "place_bytes": 20_000}, {"shards": 2**30}, {"file": "../../etc/passwd"}):
        content["splits"]["train"]["parts"][0] |= change
        (tmp_path / "a" / FILE).write_text(json.dumps(content))
        with refused(r"absurdly long|dataset\.json: 0?"):
            locate(tmp_path / "a")
