"""Existing shards adopted without a copy: every image is the file's own, or refused as the packer would read it."""

import gzip
import io
import json
import os
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset
from flaky import Flaky
from packed import npy, picture, refused, write_tar
from PIL import Image, PngImagePlugin
from published import same as same_as_packed
from published import unpacked
from webdataset import tariterators

from fdtrain.commands.entry import main
from fdtrain.data import adopt as adoption
from fdtrain.data.adopt import adopt
from fdtrain.data.dataset import fingerprint, read_description
from fdtrain.data.location import locate
from fdtrain.data.members import samples
from fdtrain.data.mixture import open_data
from fdtrain.data.pack import pack
from fdtrain.data.sources.shard_lists import shard_lists
from fdtrain.data.sources.shards import mapped, shard_source

SIZE = 8


def pixels(number: int, size: int = SIZE, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (size, size, channels), dtype=np.uint8)


def encoded(number: int, kind: str) -> bytes:
    return npy(pixels(number)) if kind == "npy" else picture(pixels(number), {"jpg": "jpeg"}.get(kind, kind))


def own_pixels(data: bytes) -> np.ndarray:
    """``(H, W, C)`` as anyone reads the file."""
    if data.startswith(b"\x93NUMPY"):
        return np.load(io.BytesIO(data))
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def shard(path: Path, numbers, image: str = "png", label=lambda n: {"cls": b"%d" % (n % 3)}, **extra: bytes) -> Path:
    """Samples of these numbers, with their labels and other members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    members = []
    for n in numbers:
        sample = {image: encoded(n, image.rpartition(".")[2])} | label(n) | extra
        members += [(f"{n:05d}.{suffix}", data) for suffix, data in sample.items()]
    write_tar(path, members)
    return path


def adopted(folder: Path, *train, test=(), **options):
    options = {"name": "some"} | options
    return adopt(shard_lists([str(p) for p in train], [str(p) for p in test]), folder, **options)


def same(folder, split: str, *tars: Path) -> list[int]:
    """Whether the split is the shards' own pixels by Python's own tar reader; returns the labels."""
    expected = []
    for path in tars:
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.lower().endswith((".npy", ".png", ".jpg", ".jpeg", ".webp")):
                    expected.append(own_pixels(tar.extractfile(member).read()))
    found, labels = unpacked(folder, split)
    np.testing.assert_array_equal(found, np.stack(expected))
    return labels


@pytest.mark.parametrize("image", ["jpeg", "webp", "npy", "PNG", "sample.image.jpg"])
def test_every_image_is_the_files_own(tmp_path, image):
    tars = [shard(tmp_path / f"{i:03d}.tar", range(6 * i, 6 * i + 6), image) for i in range(2)]
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in tars]
    description = adopted(tmp_path, *tars)
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in tars] == before
    assert sorted(os.listdir(tmp_path)) == ["000.tar", "001.tar", "dataset.json", "index"]
    assert description == read_description(tmp_path)
    assert (description.size, description.channels, description.encoding) == (8, 3, image.rpartition(".")[2].lower())
    assert same(tmp_path, "train", *tars) == [n % 3 for n in range(12)]


def test_img2dataset(tmp_path):
    """Its shards: jpg, txt (the caption) and json (metadata), keys of nine digits, beside statistics and parquet."""
    for i in range(2):
        members = []
        for n in range(5):
            key = f"{i:05d}{n:04d}"
            metadata = {"caption": f"photo {n}", "key": key, "exif": "{}", "species": ["cat", "dog", "owl"][n % 3]}
            members += [(f"{key}.jpg", encoded(5 * i + n, "jpg")), (f"{key}.txt", f"photo {n}".encode())]
            members.append((f"{key}.json", json.dumps(metadata).encode()))
        write_tar(tmp_path / f"{i:05d}.tar", members)
        (tmp_path / f"{i:05d}_stats.json").write_text("{}")
        (tmp_path / f"{i:05d}.parquet").write_bytes(b"PAR1")
    assert adopted(tmp_path, tmp_path, labels="json:species").classes == ["cat", "dog", "owl"]
    assert same(tmp_path, "train", tmp_path / "00000.tar", tmp_path / "00001.tar") == [0, 1, 2, 0, 1] * 2


@pytest.mark.parametrize(
    ("label", "labels", "classes", "expected"),
    [
        (lambda n: {"cls": [b"owl", b"cat\n", b" dog"][n % 3]}, None, ["cat", "dog", "owl"], [2, 0, 1, 2]),
        (lambda n: {"cls": b"%d" % (n + 8)}, None, [str(i) for i in range(12)], [8, 9, 10, 11]),
        (lambda n: {"cls": ["Köln", "Brno"][n % 2].encode()}, None, ["Brno", "Köln"], [1, 0, 1, 0]),
        (lambda n: {"json": b'{"label": %d}' % n}, None, list("0123"), [0, 1, 2, 3]),
        (lambda n: {"json": b'{"label": "%d"}' % n}, None, list("0123"), [0, 1, 2, 3]),
        (lambda n: {"cls": b"1", "json": b'{"label": 0}'}, None, list("01"), [1, 1, 1, 1]),
        (lambda n: {"cls": b"1", "json": b'{"label": 0}'}, "json", ["0"], [0, 0, 0, 0]),
        (lambda n: {"cls": b"1"}, "", [], [-1] * 4),
        (lambda n: {"meta.json": b'{"c": "%d"}' % n, "txt": b"A"}, "meta.json:c", list("0123"), [0, 1, 2, 3]),
        (lambda n: {"target.cls": b"%d" % n}, None, list("0123"), [0, 1, 2, 3]),
        (lambda n: {"json": b"not json"}, None, [], [-1] * 4),
        (lambda n: {"txt": b"5"}, None, [], [-1] * 4),
        (lambda n: {"txt": b"a photo of %d" % n}, "txt", [f"a photo of {n}" for n in range(4)], [0, 1, 2, 3]),
    ],
)
def test_labels(tmp_path, label, labels, classes, expected):
    """The same classes and labels whether the shards are adopted or packed anew."""
    path = shard(tmp_path / "in" / "0.tar", range(4), label=label)
    assert adopted(tmp_path / "set", path, labels=labels).classes == classes
    assert same(tmp_path / "set", "train", path) == expected
    assert pack(anew([path], SIZE, labels=labels), tmp_path / "new").classes == classes
    assert same(tmp_path / "new", "train", path) == expected


def anew(train, size, test=(), holdout=0, labels=None, **options):
    splits = shard_lists([str(p) for p in train], [str(p) for p in test])
    options = {"channels": None, "image": None, "workers": 1} | options
    return shard_source(splits, holdout, "some", size, labels=labels, **options)


@pytest.mark.parametrize(
    ("label", "complaint"),
    [
        (lambda n: {"cls": b"1"} if n < 3 else {}, "'00003' has no label .cls., others have one"),
        (lambda n: {"cls": b"1"} if n else {}, "'00001' has a label .cls., the first samples have none"),
        (lambda n: {"cls": b"1" if n < 3 else b""}, "'cls' holds no label"),
        (lambda n: {"cls": b"a" if n < 3 else b"\x1b[2J"}, "is no name of a class"),
        (lambda n: {"cls": b"%d" % (n - 1)}, "negative labels"),
        (lambda n: {"cls": b"1" if n < 3 else b"9" * 9}, "label 999999999, but at most"),
        (lambda n: {"json": b'{"label": 1}' if n < 3 else b"{}"}, "no label .field 'label' of json."),
        (lambda n: {"json": b'{"label": 1}' if n < 3 else b'{"label": 1.5}'}, "neither a text nor a whole number"),
        (lambda n: {"json": b'{"label": 1}' if n < 3 else b"[" * 100_000}, "'json' holds no label"),
        (lambda n: {"a.cls": b"1", "b.cls": b"2"}, "several labels .a.cls, b.cls.. Choose one with --labels"),
        (lambda n: {"cls": b"%d.0" % n}, "'cls' holds 0.0, no whole number"),
        (lambda n: {"cls": b"1"}, "--labels cls:x: only JSON has fields"),
    ],
)
def test_bad_labels(tmp_path, label, complaint):
    labels = "cls:x" if complaint.startswith("--labels") else None
    path = shard(tmp_path / "0.tar", range(4), label=label)
    with refused(complaint):
        adopted(tmp_path / "set", path, labels=labels)
    with refused(complaint):
        pack(anew([path], SIZE, labels=labels), tmp_path / "new")
    assert not (tmp_path / "set" / "dataset.json").exists()


def file_of(mode: str, kind: str = "png", size=(SIZE, SIZE), **options) -> bytes:
    file = io.BytesIO()
    picture_ = Image.fromarray(pixels(7, max(size))[: size[1], : size[0]]).convert("L" if mode == "I;16" else mode)
    if mode == "RGBA":
        picture_.putalpha(100)
    picture_.convert(mode).save(file, kind, **options)
    return file.getvalue()


GOOD = [("0.png", encoded(0, "png"))]
ANEW = rf"'1': .*\. Pack all anew with --size {SIZE}\."
CROP = rf"'1' has 9x9 pixels, expected {SIZE}x{SIZE}.*ask for one size with --size\."


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        # Packed anew only. Pictures that are converted: test_picture.py.
        ([("1.npy", npy(pixels(1, 9)))], CROP),
        ([("1.png", file_of("RGB") + bytes(2_000_000))], ANEW),
        ([("1.npy", npy(pixels(1).transpose(2, 0, 1).copy()))], ANEW),
        # Not at all.
        ([("1.png", b"")], "is not an image"),
        ([("1.npy", npy(pixels(1).astype(np.uint16)))], "array of uint16 .* images are uint8"),
        ([("1.npy", npy(np.asfortranarray(pixels(1))))], "not an npy array .*Fortran order"),
        # Keys.
        ([("0.png", encoded(1, "png"))], r"'0' has two members 'png'"),
        ([("1.png", encoded(1, "png")), ("0.png", encoded(2, "png"))], "'0' comes twice, or its members do not follow"),
        ([("1.txt", b"no image")], "'1' has no image"),
        # A key ends at the first dot.
        ([(f"photo.{n}.png", encoded(n, "png")) for n in range(2)], r"'photo' has several images \(0.png.* --image"),
    ],
)
def test_bad_images(tmp_path, members, complaint):
    write_tar(tmp_path / "0.tar", [*GOOD, *members])
    with refused(complaint) as error:
        adopted(tmp_path / "set", tmp_path / "0.tar")
    assert "0.tar" in str(error.value)
    assert not (tmp_path / "set" / "dataset.json").exists()
    if complaint in (ANEW, CROP):
        assert pack(anew([tmp_path / "0.tar"], SIZE), tmp_path / "new").images("train") == 2
    else:
        with refused(complaint):
            pack(anew([tmp_path / "0.tar"], SIZE), tmp_path / "new")


def test_samples_are_those_of_webdataset(tmp_path):
    (tmp_path / "a.b").mkdir()
    members = [(f"{n}.{suffix}", b"%d" % n) for n in range(4) for suffix in ("x.PNG", "cls", "txt")]
    members += [("__meta__/a.json", b"{}"), ("__info__", b"x"), ("__meta__/a.png", b"x")]
    members += [("d.e/7.Png", b"x"), ("d.e/7.cls", b"1"), ("d.e/.hidden", b""), ("none", b"")]
    path = write_tar(tmp_path / "a.b" / "0.tar", members)
    expected = [s for s in tariterators.tarfile_samples([{"url": str(path)}]) if s["__key__"] != "d.e/"]
    with mapped(path, "a") as data:
        found = [(key, {s: data[o : o + n] for s, (o, n) in places.items()}) for key, places, _ in samples(data)]
    assert found == [(s["__key__"], {k: v for k, v in s.items() if k[0] != "_"}) for s in expected]
    assert found[-1][0] == "d.e/7"


@pytest.mark.parametrize("path", ["{0..1}.tar", "*.tar", "list.txt"])
def test_a_path_may_name_the_shards_themselves(tmp_path, monkeypatch, path, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "in").mkdir()
    tars = [shard(tmp_path / "in" / f"{i}.tar", range(4 * i, 4 * i + 4)) for i in range(2)]
    (tmp_path / "in" / "list.txt").write_text("0.tar\n1.tar\n")
    named = str(tmp_path / "in" / path)
    assert same(named, "train", *tars) == [n % 3 for n in range(8)]
    assert "checking" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path / "in")) == ["0.tar", "1.tar", "list.txt"]
    # The index is kept, while nothing changes.
    assert same(named, "train", *tars) == [n % 3 for n in range(8)]
    assert "checking" not in capsys.readouterr().err
    shard(tars[1], range(9, 12))
    os.utime(tars[1], (1, 1))
    assert same(named, "train", *tars) == [0, 1, 2, 0, 0, 1, 2]
    adopted(tmp_path / "in", *tars, name="described")
    assert open_data([named]).description.name == ("in" if path == "*.tar" else "described")


def test_paths_of_shards_that_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with refused(r"no file .*none\.tar\. Correct the path"):
        open_data([tmp_path / "none.tar"])
    (tmp_path / "0.tar").write_bytes(b"x" * 2048)
    with refused(r"0\.tar cannot be read as a tar file"):
        open_data([tmp_path / "*.tar"])
    (tmp_path / "list.txt").write_text("http://127.0.0.1:9/0.tar\n")
    with refused("names remote shards without a dataset"):
        open_data([tmp_path / "list.txt"])
    (tmp_path / "pipes.txt").write_text("pipe:touch executed; cat 0.tar\n")
    with refused("pipe"):
        open_data([tmp_path / "pipes.txt"])


def test_pictures_that_are_stored_as_they_are_packed(tmp_path):
    """What an upright, plainly coloured picture has beside its pixels changes nothing."""
    exif = Image.Exif()
    exif[0x0112] = 1
    long_text = PngImagePlugin.PngInfo()
    long_text.add_text("parameters", "of a generator" * 200_000, zip=True)
    members = [
        ("0.jpg", file_of("RGB", "jpeg", exif=exif, progressive=True, quality=30)),
        ("1.webp", file_of("RGB", "webp", icc_profile=b"x" * 300)),
        ("2.png", file_of("RGB", pnginfo=long_text)),
    ]
    write_tar(tmp_path / "0.tar", members)
    adopted(tmp_path / "set", tmp_path / "0.tar")
    same(tmp_path / "set", "train", tmp_path / "0.tar")


def test_a_grey_set(tmp_path):
    files = [file_of("L"), file_of("L", "jpeg")]
    write_tar(tmp_path / "0.tar", zip(("0.png", "1.jpg"), files))
    assert adopted(tmp_path / "set", tmp_path / "0.tar").channels == 1
    grey = [own_pixels(data)[..., :1] for data in files]
    np.testing.assert_array_equal(unpacked(tmp_path / "set", "train")[0], np.stack(grey))
    write_tar(tmp_path / "1.tar", [("0.png", file_of("L")), ("1.png", file_of("RGB"))])
    with refused(r"'1' has colours, but the data set is grey.*--channels 3"):
        adopted(tmp_path / "mixed", tmp_path / "1.tar")


def test_the_image_is_chosen_among_several(tmp_path):
    path, prints = shard(tmp_path / "in" / "0.tar", range(4), "jpg", **{"mask.png": encoded(99, "png")}), set()
    for image, expected in (("jpg", own_pixels(encoded(2, "jpg"))), ("mask.png", pixels(99))):
        description = adopted(tmp_path / image, path, image=image)
        images, labels = unpacked(tmp_path / image, "train")
        np.testing.assert_array_equal(images[2], expected)
        assert labels == [0, 1, 2, 0]
        prints.add(fingerprint(description.splits["train"], description.members))
    # A run does not go on with other images of the same shards.
    assert len(prints) == 2


def test_levels(tmp_path):
    write_tar(tmp_path / "0.tar", [(f"{i}.npy", npy(pixels(i) % 17)) for i in range(4)])
    assert adopted(tmp_path / "set", tmp_path / "0.tar", levels=17).levels == 17
    same(tmp_path / "set", "train", tmp_path / "0.tar")
    with refused(r"has level 16, not 0 to 15. Correct --levels"):
        adopted(tmp_path / "other", tmp_path / "0.tar", levels=16)


def test_shards_in_two_folders_with_one_name(tmp_path):
    train = [shard(tmp_path / part / "00000.tar", range(i, i + 3)) for i, part in ((0, "a"), (3, "b"))]
    test = shard(tmp_path / "val" / "00000.tar", range(6, 9))
    description = adopted(tmp_path / "set", *train, test=[test])
    names = [shard.file for split in description.splits.values() for shard in split]
    assert names == ["train-000000.tar", "train-000001.tar", "test-000000.tar"]
    same(tmp_path / "set", "train", *train)
    same(tmp_path / "set", "test", test)
    test.write_bytes(train[0].read_bytes())
    with refused("are the same, byte for byte"):
        adopted(tmp_path / "again", *train, test=[test])


def test_a_data_set_above_its_shards_can_be_moved(tmp_path):
    path = shard(tmp_path / "set" / "deep" / "0.tar", range(3))
    adopted(tmp_path / "set", path)
    os.rename(tmp_path / "set", tmp_path / "moved")
    same(tmp_path / "moved", "train", tmp_path / "moved" / "deep" / "0.tar")


PLACES = [
    ("0.tar 1.tar", ".", "", "train: 0.tar 1.tar"),
    ("0.tar 1.tar 2.tar", "{2..1}.tar", "0.tar", "train: 2.tar 1.tar; test: 0.tar"),
    ("a/0.tar b/0.tar", "a b/*", "", "train: a/0.tar b/0.tar"),
    ("a/0.tar v/0.tar", "a", "v", "train: a/0.tar; test: v/0.tar"),
    ("x/train/0.tar x/val/0.tar", "x", "", "train: x/train/0.tar; valid: x/val/0.tar"),
    ("i-train-0.tar i-validation-0.tar", ".", "", "train: i-train-0.tar; valid: i-validation-0.tar"),
    ("train0.tar test0.tar", "*.tar", "", "train: train0.tar; test: test0.tar"),
    ("train0.tar x.tar", ".", "", "train: train0.tar x.tar"),
    ("{0..1}.tar", "{0..1}.tar", "", "train: {0..1}.tar"),
    ("", "0.tar", "", "no file 0.tar"),
    ("0.tar", "{0..1.tar", "", "has a '{' without its other"),
    ("a/x.png", "a", "", "holds no shards .* fdtrain pack images"),
    ("0.tar", "0.tar ./0.tar", "", "named twice, for train and for train"),
    ("0.tar test.tar", ".", "", "which shards are to train on"),
    ("train-val.tar test.tar", ".", "", "train-val.tar: which split"),
    ("", "pipe:true", "", "commands .pipe:. cannot be adopted"),
    ("", "https://host/*.tar", "", "servers are not searched"),
    ("", "https://host/0.tar?${NO_SUCH_VARIABLE}", "", "the environment does not have"),
]


@pytest.mark.parametrize(("files", "train", "test", "expected"), PLACES)
def test_names_of_shards(tmp_path, monkeypatch, files, train, test, expected):
    for name in files.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    if not expected.startswith("train: "):
        with refused(expected):
            shard_lists(train.split(), test.split())
        return
    found = shard_lists(train.split(), test.split())
    assert "; ".join(f"{split}: {' '.join(map(os.path.normpath, of))}" for split, of in found.items()) == expected


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (gzip.compress, "is compressed: no sample in it can be read in place"),
        (lambda data: b"", "cannot be read as a tar file .cannot mmap an empty file.. Fetch or make it again"),
        (lambda data: 2 * data, "goes on after its end at byte .*: several archives in one file"),
    ],
)
def test_no_tar(tmp_path, damage, complaint):
    paths = [shard(tmp_path / f"{i}.tar", range(3 * i, 3 * i + 3)) for i in range(2)]
    paths[1].write_bytes(damage(paths[1].read_bytes()))
    for read in (lambda: adopted(tmp_path / "set", *paths), lambda: anew(paths, SIZE)):
        with refused(rf"1\.tar.*{complaint}"):
            read()


@pytest.mark.parametrize(
    ("file", "image", "complaint"),
    [("a\\b.tar", "png", "cannot stand in dataset.json as file"), ("0.tar", "x" * 230 + ".png", "as image.0")],
)
def test_names_that_a_description_cannot_have(tmp_path, file, image, complaint):
    path = tmp_path / file
    write_tar(path, [(f"0.{image}", encoded(0, "png"))], format=tarfile.PAX_FORMAT)
    with refused(complaint):
        adopted(tmp_path / "set", path)


def test_a_holdout_is_of_whole_shards(tmp_path):
    tars = [shard(tmp_path / f"{i}.tar", range(3 * i, 3 * i + 3)) for i in range(5)]
    description = adopted(tmp_path / "set", *tars, holdout=4)
    assert (description.images("train"), description.images("test")) == (9, 6)
    assert adopted(tmp_path / "again", *tars, holdout=4).splits == description.splits
    with refused("holds a data set already"):
        adopted(tmp_path / "again", *tars)
    new = pack(anew(tars, SIZE, holdout=4), tmp_path / "new")
    assert (new.images("train"), new.images("test")) == (9, 6)
    with refused(r"takes whole shards, and would leave none\. Hold out about"):
        adopted(tmp_path / "most", *tars, holdout=13)


def test_checked_shards_are_not_checked_again(tmp_path, monkeypatch):
    tars = [shard(tmp_path / "in" / f"{i}.tar", range(3 * i, 3 * i + 3)) for i in range(3)]
    check, scanned = adoption.check_shard, []

    def counted(store, number, place, *arguments):
        scanned.append(Path(place).name)
        if len(scanned) == 3:
            raise KeyboardInterrupt
        return check(store, number, place, *arguments)

    monkeypatch.setattr(adoption, "check_shard", counted)
    with pytest.raises(KeyboardInterrupt):
        adopted(tmp_path / "set", *tars)
    # One that was changed in between is checked anew.
    time.sleep(0.01)
    tars[0].touch()
    adopted(tmp_path / "set", *tars)
    assert scanned == ["0.tar", "1.tar", "2.tar", "0.tar", "2.tar"]
    assert sorted(os.listdir(tmp_path / "set")) == ["dataset.json", "index"]


def test_presigned_urls(tmp_path, capsys, monkeypatch):
    """Credentials are in one private file, which data.path names; nowhere else, and in no message."""
    tars = [shard(tmp_path / "in" / f"{i}.tar", range(3 * i, 3 * i + 3)) for i in range(2)]
    monkeypatch.setenv("SIGNATURE", "sig=SECRET")
    with Flaky(tmp_path / "in").serve() as url:
        urls = tmp_path / "urls.txt"
        urls.write_text(f"# signed\n{url}/1.tar?X-Amz-Signature=SECRET1&part=1\n")
        adopted(tmp_path / "set", f"{url}/0.tar?${{SIGNATURE}}", urls)
        written = tmp_path / "set" / "shards.txt"
        assert written.stat().st_mode & 0o777 == 0o600
        assert written.read_text() == f"{url}/0.tar?sig=SECRET\n{url}/1.tar?X-Amz-Signature=SECRET1&part=1\n"
        assert "SECRET" not in (tmp_path / "set" / "dataset.json").read_text()
        assert same(written, "train", *tars) == [0, 1, 2] * 2
        with refused() as error:
            adopted(tmp_path / "none", f"{url}/9.tar?sig=SECRET")
    assert "SECRET" not in str(error.value)
    assert "9.tar" in str(error.value)
    assert "SECRET" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("place", ["/etc/passwd", "local:///etc/passwd"])
def test_a_remote_description_reads_no_files_of_this_machine(tmp_path, place):
    shard(tmp_path / "set" / "0.tar", range(3))
    adopted(tmp_path / "set", tmp_path / "set" / "0.tar")
    file = tmp_path / "set" / "dataset.json"
    with Flaky(tmp_path / "set").serve() as url:
        same(url, "train", tmp_path / "set" / "0.tar")
        content = json.loads(file.read_text())
        content["splits"]["train"][0]["place"] = place
        file.write_text(json.dumps(content))
        with refused("no local files"):
            locate(url)


def test_the_command(tmp_path, monkeypatch, capsys):
    """The documented line, on two processes; then with a size."""
    monkeypatch.chdir(tmp_path)
    for i in range(3):
        shard(tmp_path / "shards" / f"{i:03d}.tar", range(4 * i, 4 * i + 4), "jpg")
    shard(tmp_path / "val" / "0.tar", range(12, 15), "jpg")
    command = ["pack", "adopt", "shards/{000..002}.tar", "--no-config"]
    main([*command, "--test", "val/*.tar", "--workers", "2"])
    told = capsys.readouterr().out
    assert "shards: shards: train: 12 images, 3 shards\nshards: shards: test: 3 images, 1 shard\n" in told
    same(tmp_path / "shards", "train", *sorted((tmp_path / "shards").glob("*.tar")))
    same(tmp_path / "shards", "test", tmp_path / "val" / "0.tar")
    assert main([*command, "--size", "4"]) == 2
    assert "give a folder for them with --output" in capsys.readouterr().err
    main([*command, "--size", "4", "--output", "small", "--encoding", "png", "--workers", "1"])
    assert read_description(tmp_path / "small").size == 4


def test_webdataset_reads_what_is_packed(digits):
    data = webdataset.WebDataset(f"{digits}/train-{{000000..000014}}.tar", shardshuffle=False)
    found, labels = zip(*data.decode().to_tuple("npy", "cls"), strict=True)
    same_as_packed(digits, "train", np.stack(found), [*labels])
