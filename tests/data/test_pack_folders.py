"""Folders and archives of images as people have them: splits, links, rotated pictures, labels beside images."""

import json
import os
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import published as pub
import pytest
from packed import raw_png, refused, tar_bytes, write_tar, zip_bytes
from PIL import Image
from published import by_content, image_folder, image_source, unpacked

from fdtrain.commands.entry import main
from fdtrain.data.pack import pack
from fdtrain.data.sources import archive
from fdtrain.data.sources.archive import members

PICTURES = pub.random_images(12, 8)
FILES = [pub.encoded(picture) for picture in PICTURES]


def packed(path: Path, out: Path, **options) -> dict[str, set]:
    """Images and labels by split."""
    description = pack(image_source(path, **options), out)
    return {split: by_content(*unpacked(out, split)) for split in description.splits}


def listed(names: list[str]) -> bytes:
    """The dataset.json of EDM's tools."""
    return json.dumps({"labels": [[name, i % 3] for i, name in enumerate(names)]}).encode()


SHARDED = [f"{i // 6:05d}/img{i:08d}.png" for i in range(12)]
OF_CLASSES = [f"{'ab'[i % 2]}/deeper/{i}.png" for i in range(12)]
PHOTOS = [f"some/photo.{i:04d}.png" for i in range(12)]
THIRD, HALF, NONE = [0, 1, 2] * 4, [0, 1] * 6, [-1] * 12


def beside(names: list[str], ending: str, content: bytes) -> dict[str, bytes]:
    """Files of the images' names, with numbers from 0 to 2."""
    return {name.replace("png", ending): content.replace(b"N", b"%d" % (i % 3)) for i, name in enumerate(names)}


def divided(train: str, held_out: str, names: list[str] = OF_CLASSES) -> list[str]:
    return [f"{train if i < 8 else held_out}/{name}" for i, name in enumerate(names)]


LAYOUTS = {
    "classes": (OF_CLASSES, {"a/notes.txt": b"", ".DS_Store": b"", "a/._1.png": b"junk"}, HALF),
    "a class called train": ([f"{('bus', 'train')[i % 2]}/{i}.png" for i in range(12)], {}, HALF),
    "captions": (OF_CLASSES, beside(OF_CLASSES, "json", b'{"caption": "x"}'), HALF),
    "no labels": ([f"{i}.png" for i in range(12)], {}, NONE),
    "EDM": (SHARDED, {"dataset.json": listed(SHARDED)}, THIRD),
    "EDM, wrapped": ([f"edm/{name}" for name in SHARDED], {"edm/dataset.json": listed(SHARDED)}, THIRD),
    "EDM without labels": (SHARDED, {"dataset.json": b'{"labels": null}'}, NONE),
    "numbers beside": (PHOTOS, beside(PHOTOS, "cls", b"N"), THIRD),
    "JSON beside": (PHOTOS, beside(PHOTOS, "json", b'{"label": N, "caption": "x"}'), THIRD),
    "splits of classes": (divided("train", "test"), {}, HALF),
    "wrapped splits": (divided("photos/data/Train", "photos/data/Validation"), {}, HALF),
    "splits, one of one class": (divided("train", "test/b"), {}, HALF[:8] + [1] * 4),
    "splits without classes": (divided("train", "valid", [f"images/{i}.png" for i in range(12)]), {}, NONE),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_splits_and_labels(tmp_path, layout):
    names, others, labels = LAYOUTS[layout]
    found = packed(image_folder(tmp_path / "in", dict(zip(names, FILES)) | others), tmp_path / "out")
    if "splits" in layout:
        held_out = "test" if "test" in names[-1] else "valid"
        assert found == {"train": by_content(PICTURES[:8], labels[:8]), held_out: by_content(PICTURES[8:], labels[8:])}
        with refused("has splits of its own"):
            image_source(tmp_path / "in", holdout=2)
    else:
        assert found == {"train": by_content(PICTURES, labels)}


def test_folders_zips_and_tars_are_alike(tmp_path):
    """Shuffled, and in the same order."""
    files = dict(zip(OF_CLASSES, FILES)) | {"a/notes.txt": b"no image"}
    inputs = [
        image_folder(tmp_path / "in", files),
        pub.write_zip(tmp_path / "in.zip", files),
        pub.write_zip(tmp_path / "wrapped.zip", {f"wrapper/{n}": d for n, d in files.items()}, zipfile.ZIP_STORED),
        pub.write_tar(tmp_path / "in.tar", {f"./{name}": data for name, data in files.items()}),
    ]
    found = [pack(image_source(path), tmp_path / f"out{i}").splits for i, path in enumerate(inputs)]
    assert found == found[:1] * 4
    labels = unpacked(tmp_path / "out0", "train")[1]
    assert labels not in (sorted(labels), HALF)


def test_images_held_out(tmp_path):
    for part, chosen in (("train", range(8)), ("test", range(8, 12))):
        image_folder(tmp_path / part, {OF_CLASSES[i]: FILES[i] for i in chosen})
    train, test = by_content(PICTURES[:8], HALF[:8]), by_content(PICTURES[8:], HALF[8:])
    pack(image_source(tmp_path / "train", tmp_path / "test"), tmp_path / "out")
    assert [by_content(*unpacked(tmp_path / "out", split)) for split in ("train", "test")] == [train, test]
    description = pack(image_source(tmp_path / "train", holdout=3), tmp_path / "held")
    assert (description.images("train"), description.images("test")) == (5, 3)
    assert set.union(*(by_content(*unpacked(tmp_path / "held", split)) for split in ("train", "test"))) == train


def test_images_resized(tmp_path):
    """The central square of an upright picture."""
    wide, tall = pub.random_images(1, (20, 30))[0], pub.random_images(1, (40, 20), channels=1)[0]
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {"a.png": pub.encoded(wide), "b.png": pub.encoded(tall), "c.png": pub.encoded(wide, exif=exif)}
    description = pack(image_source(image_folder(tmp_path / "in", files), resize=10, channels=3), tmp_path / "out")
    squares = [wide[:, 5:25], np.repeat(tall[10:30], 3, axis=2), np.rot90(wide, -1)[5:25]]
    expected = [np.asarray(Image.fromarray(x).resize((10, 10), Image.Resampling.LANCZOS)) for x in squares]
    assert by_content(*unpacked(tmp_path / "out", "train")) == by_content(np.stack(expected), NONE[:3])
    assert "Lanczos to 10x10" in description.source


A, B = (pub.encoded(np.zeros((size, size, 1), np.uint8)) for size in (8, 4))
PAIR = {"0.png": A, "1.png": A}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train/a.png": A, "test/b.png": A, "cat/c.png": A}, "test, train, beside cat: are they splits or classes"),
        ({"test/a.png": A, "val/b.png": A}, "folders test, val: are they"),
        ({"train/a.png": A, "val/b.png": A, "validation/c.png": A}, "folders train, val, validation: are they"),
        ({"readme.txt": b"hello"}, "holds no images"),
        ({"a.png": A, "b.png": B}, r"pixels, expected .*--size"),
        ({"a.png": raw_png(8193, 8193, (b"IDAT", zlib.compress(bytes(1 << 20))))}, "a.png is .* limit is 67108864"),
        ({"a.png": pub.encoded(np.zeros((4, 8, 1), np.uint8))}, "not square. Ask for a square with --size"),
        ({"cat/a.png": A, "dog/b.png": A, "c.png": A}, "'c.png' lies beside the class folders"),
        ({"a.png": A, "dataset.json": b"{"}, "is not of the form"),
        ({"a.png": A, "dataset.json": b'{"labels": [1]}'}, "is not of the form"),
        ({"a.png": A, "dataset.json": b'{"labels": [["a.png", -1]]}'}, "is not of the form"),
        ({"a.png": A, "dataset.json": b'{"labels": [["b.png", 0]]}'}, "no label for 'a.png'"),
        ({"a.png": A, "dataset.json": b'{"labels": [["a.png", 0], ["a.png", 0]]}'}, "lists an image twice"),
        ({"a.png": A, "dataset.json": b'{"labels": [["a.png", 1000000000000]]}'}, "at most 1048576 classes"),
        (PAIR | {"0.cls": b"0"}, "1.png has no label, .*0.png has one. Label all images, or none"),
        (PAIR | {"0.cls": b"cat"}, "0.cls holds no whole number from 0 as a label.*give each class a folder"),
        (PAIR | {"0.json": b'{"label": "cat"}'}, "0.json holds no whole number"),
        (PAIR | {"0.json": b"[" * 10000}, "0.json holds no whole number"),
        (PAIR | {"0.cls": b"9" * 19, "1.cls": b"0"}, "at most 1048576 classes"),
        (PAIR | {"0.cls": b"-7"}, "0.cls holds no whole number from 0"),
    ],
)
def test_folders_that_cannot_be_packed(tmp_path, files, message):
    with refused(message):
        pack(image_source(image_folder(tmp_path / "in", files)), tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.parquet", r"a\.parquet are not read here: fdtrain pack hub FOLDER reads them"),
        ("x/data.mdb", r"data\.mdb are not read here: write its images into a folder"),
        ("x/mnist-train.tfrecord-00000-of-00001", "numpy.savez"),
    ],
)
def test_what_else_reads_other_files(tmp_path, name, message):
    image_folder(tmp_path / "in", {name: b"x"})
    for place in (tmp_path / "in", tmp_path / "in" / name):
        with refused(message) as caught:
            image_source(place)
        assert "fetch it again" not in str(caught.value)


def test_held_out_images_that_do_not_fit(tmp_path):
    train = image_folder(tmp_path / "train", {"cat/a.png": A, "dog/b.png": A})
    numbered = {"x/a.png": A, "dataset.json": b'{"labels": [["x/a.png", 0]]}'}
    held_out = {"none": {"a.png": A}, "numbered": numbered, "other": {"cat/a.png": A, "emu/b.png": A}}
    for name, files in held_out.items():
        with refused("classes that the train images lack: emu" if name == "other" else "Label both alike"):
            image_source(train, image_folder(tmp_path / name, files))
    with refused(r"holds 2 images: 2 cannot be held out. Hold out about 1\."):
        image_source(train, holdout=2)


def test_names_that_are_no_text(tmp_path):
    """Folders and files may be called anything; classes must be text."""
    for name in (b"caf\xe9/0.png", b"cat/1\xe9.png"):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/in/" + name))
        path.parent.mkdir(parents=True)
        path.write_bytes(FILES[int(path.name[0])])
    with refused(r"'caf\\udce9' cannot stand in dataset.json as classes.0 .*Rename"):
        pack(image_source(tmp_path / "in"), tmp_path / "out")
    os.rename(os.fsencode(tmp_path) + b"/in/caf\xe9", tmp_path / "in" / "café")
    assert packed(tmp_path / "in", tmp_path / "out") == {"train": by_content(PICTURES[:2], [0, 1])}


def test_skipped_files_are_counted(tmp_path):
    files = {"a/0.png": FILES[0], "b/1.png": FILES[1], "b/2.gif": b"", "b/3.gif": b"", "readme": b"", ".hidden": b""}
    notes = image_source(image_folder(tmp_path / "in", files)).notes
    assert len(notes) == 1
    assert "3 files are of other kinds and were skipped (2 .gif, 1 no extension)" in notes[0]


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        ("cat/again", ".", "leads to the same folder as"),
        ("dog", "cat", "leads to the same folder as"),
        ("again", "again", r"again is a link to nothing \(Too many levels of symbolic links\)"),
        ("b.png", "absent.png", "b.png is a link to nothing"),
    ],
)
def test_links_that_lead_back_or_nowhere(tmp_path, name, target, message):
    image_folder(tmp_path / "in", {"cat/a.png": FILES[0]})
    (tmp_path / "in" / name).symlink_to(target)
    with refused(message):
        image_source(tmp_path / "in")


def test_links_to_other_folders_and_files_are_followed(tmp_path):
    image_folder(tmp_path / "elsewhere", {"a.png": FILES[0], "b.png": FILES[1]})
    (tmp_path / "in" / "dog").mkdir(parents=True)
    (tmp_path / "in" / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "dog" / "c.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    found = packed(tmp_path / "in", tmp_path / "out")
    assert found["train"] == by_content(PICTURES[[0, 1, 1]], [0, 0, 1])


@pytest.mark.parametrize(("source", "place"), [("images", "in"), ("hub", "in/x.parquet")])
def test_fifos_do_not_hang(tmp_path, source, place, capsys):
    if place != "in":
        image_folder(tmp_path / "in", {"a.png": FILES[0]})
    os.mkfifo(tmp_path / place)
    assert main(["pack", source, str(tmp_path / "in"), str(tmp_path / "out")]) == 2
    assert "neither a file nor a folder" in capsys.readouterr().err


def test_a_zip_of_windows_with_backslashes(tmp_path):
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for name, data in (("in\\", b""), ("in\\cat\\a.png", FILES[0]), ("in\\dog\\b.png", FILES[1])):
            info = zipfile.ZipInfo(name)
            info.create_system = 0
            archive.writestr(info, data)
    assert packed(tmp_path / "in.zip", tmp_path / "out")["train"] == by_content(PICTURES[:2], [0, 1])


@pytest.mark.parametrize("compress", [False, True])
def test_links_in_tars_stand_for_their_files(tmp_path, compress):
    content = [
        ("cat/later.png", b"", tarfile.SYMTYPE, "../dog/a.png"),
        ("./dog/a.png", FILES[0]),
        ("cat/hard.png", b"", tarfile.LNKTYPE, "dog/a.png"),
        ("cat/chain.png", b"", tarfile.SYMTYPE, "hard.png"),
    ]
    write_tar(tmp_path / "in.tar", content, mode="w:gz" if compress else "w")
    found = members(tmp_path / "in.tar")
    assert [member.name for member in found] == ["cat/later.png", "dog/a.png", "cat/hard.png", "cat/chain.png"]
    for member in found:
        with archive.stream(member) as file:
            assert file.read() == FILES[0]
    if not compress:
        assert len(packed(tmp_path / "in.tar", tmp_path / "out")["train"]) == 2


@pytest.mark.parametrize("target", ["b.png", "/etc/passwd"])
def test_links_in_tars_to_nothing(tmp_path, target):
    links = (("a.png", target), ("b.png", "a.png"))
    write_tar(tmp_path / "in.tar", [(name, b"", tarfile.SYMTYPE, link) for name, link in links])
    with refused(r"'a.png' is a link to '.*', no file of the archive"):
        members(tmp_path / "in.tar")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("made", [tar_bytes, zip_bytes])
def test_two_files_of_one_name(tmp_path, made):
    (tmp_path / "in").write_bytes(made(("a.png", data) for data in FILES[:2]))
    with refused(r"holds 'a.png' 2 times"):
        members(tmp_path / "in")
