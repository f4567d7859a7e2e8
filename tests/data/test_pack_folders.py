"""Folders and archives of images as people have them: splits, links, rotated pictures, labels beside images."""

import json
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import published as pub
import pytest
from packed import tar_bytes, write_tar, zip_bytes
from PIL import Image
from test_pack_sources import by_content, image_folder, image_source, unpacked

from fdtrain.commands.entry import main
from fdtrain.data.pack import pack
from fdtrain.data.sources import archive
from fdtrain.data.sources.archive import members
from fdtrain.errors import UserError

PICTURES = pub.random_images(12, 8)
FILES = [pub.encoded(picture) for picture in PICTURES]


def packed(path: Path, out: Path, **options) -> dict[str, set]:
    """Images and labels by split."""
    description = pack(image_source(path, **options), out)
    return {split: by_content(*unpacked(out, split)) for split in description.splits}


@pytest.mark.parametrize("wrapper", ["", "photos/data/"])
@pytest.mark.parametrize(("train", "held_out", "split"), [("train", "test", "test"), ("Train", "Validation", "valid")])
def test_train_and_test_inside_are_splits(tmp_path, wrapper, train, held_out, split):
    files = {f"{wrapper}{train}/{'ab'[i % 2]}/{i}.png": FILES[i] for i in range(8)}
    files |= {f"{wrapper}{held_out}/{'ab'[i % 2]}/{i}.png": FILES[i] for i in range(8, 12)}
    found = packed(image_folder(tmp_path / "in", files), tmp_path / "out")
    assert found == {"train": by_content(PICTURES[:8], [0, 1] * 4), split: by_content(PICTURES[8:], [0, 1] * 2)}
    with pytest.raises(UserError, match="has splits of its own"):
        image_source(tmp_path / "in", holdout=2)


def test_a_split_of_one_class_or_of_none(tmp_path):
    files = {f"train/{'ab'[i % 2]}/{i}.png": FILES[i] for i in range(8)}
    files |= {f"test/b/{i}.png": FILES[i] for i in range(8, 10)}
    assert packed(image_folder(tmp_path / "one", files), tmp_path / "a")["test"] == by_content(PICTURES[8:10], [1, 1])
    files = {f"{'train/images' if i < 8 else 'valid'}/{i}.png": FILES[i] for i in range(12)}
    found = packed(image_folder(tmp_path / "none", files), tmp_path / "b")
    assert found == {"train": by_content(PICTURES[:8], [-1] * 8), "valid": by_content(PICTURES[8:], [-1] * 4)}


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["train", "test", "cat"], "test, train, beside cat: are they splits or classes"),
        (["test", "val"], "folders test, val: are they"),
        (["train", "val", "validation"], "folders train, val, validation: are they"),
    ],
)
def test_folders_that_may_be_splits_or_classes(tmp_path, folders, message):
    files = {f"{folders[i % len(folders)]}/{i}.png": FILES[i] for i in range(12)}
    with pytest.raises(UserError, match=message):
        image_source(image_folder(tmp_path / "in", files))


def test_a_class_may_be_called_train(tmp_path):
    files = {f"{('bus', 'train')[i % 2]}/{i}.png": FILES[i] for i in range(12)}
    assert packed(image_folder(tmp_path / "in", files), tmp_path / "out") == {"train": by_content(PICTURES, [0, 1] * 6)}


def test_labels_in_a_wrapped_dataset_json(tmp_path):
    files = {f"edm/{i // 6:05d}/{i}.png": FILES[i] for i in range(12)}
    labels = [[f"{i // 6:05d}/{i}.png", i % 3] for i in range(12)]
    files["edm/dataset.json"] = json.dumps({"labels": labels}).encode()
    found = packed(image_folder(tmp_path / "in", files), tmp_path / "out")
    assert found == {"train": by_content(PICTURES, [0, 1, 2] * 4)}
    (tmp_path / "in" / "edm" / "dataset.json").write_text(json.dumps({"labels": [*labels, ["00000/0.png", 2]]}))
    with pytest.raises(UserError, match="lists an image twice"):
        image_source(tmp_path / "in")


def test_names_that_are_no_text(tmp_path):
    """Folders and files may be called anything; classes must be text."""
    for name in (b"caf\xe9/0.png", b"cat/1\xe9.png"):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/in/" + name))
        path.parent.mkdir(parents=True)
        path.write_bytes(FILES[int(path.name[0])])
    with pytest.raises(UserError, match=r"'caf\\udce9' cannot stand in dataset.json as classes.0 .*Rename"):
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
    with pytest.raises(UserError, match=message):
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
        with pytest.raises(UserError, match=message) as caught:
            image_source(place)
        assert "fetch it again" not in str(caught.value)


def test_a_zip_of_windows_with_backslashes(tmp_path):
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for name, data in (("in\\", b""), ("in\\cat\\a.png", FILES[0]), ("in\\dog\\b.png", FILES[1])):
            info = zipfile.ZipInfo(name)
            info.create_system = 0
            archive.writestr(info, data)
    assert packed(tmp_path / "in.zip", tmp_path / "out")["train"] == by_content(PICTURES[:2], [0, 1])


def test_a_rotated_picture_is_cropped_upright(tmp_path):
    wide, exif = pub.random_images(1, (20, 30))[0], Image.Exif()
    exif[0x0112] = 6
    folder = image_folder(tmp_path / "in", {"a.png": pub.encoded(wide, exif=exif)})
    found = packed(folder, tmp_path / "out", resize=20)
    assert found["train"] == by_content(np.rot90(wide, -1)[5:25][None], [-1])


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
    with pytest.raises(UserError, match=r"'a.png' is a link to '.*', no file of the archive"):
        members(tmp_path / "in.tar")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("made", [tar_bytes, zip_bytes])
def test_two_files_of_one_name(tmp_path, made):
    (tmp_path / "in").write_bytes(made(("a.png", data) for data in FILES[:2]))
    with pytest.raises(UserError, match=r"holds 'a.png' 2 times"):
        members(tmp_path / "in")


@pytest.mark.parametrize(("container", "extension"), [("tar", "cls"), ("folder", "json")])
def test_labels_of_webdataset_shards(tmp_path, container, extension):
    files = {}
    for i, data in enumerate(FILES):
        text = str(i % 3) if extension == "cls" else json.dumps({"label": i % 3, "caption": "x"})
        files |= {f"some/{i:04d}.{extension}": text.encode(), f"some/{i:04d}.png": data}
    if container == "tar":
        path = tmp_path / "in.tar"
        path.write_bytes(tar_bytes(files.items()))
    else:
        path = image_folder(tmp_path / "in", files)
    assert packed(path, tmp_path / "out")["train"] == by_content(PICTURES, [0, 1, 2] * 4)


def test_captions_are_no_labels(tmp_path):
    files = {f"{'ab'[i % 2]}/{i}.png": data for i, data in enumerate(FILES)}
    files |= {f"{'ab'[i % 2]}/{i}.json": b'{"caption": "x"}' for i in range(12)}
    found = packed(image_folder(tmp_path / "in", files), tmp_path / "out")
    assert found["train"] == by_content(PICTURES, [0, 1] * 6)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"0.cls": b"0"}, "1.png has no label, .*0.png has one. Label all images, or none"),
        ({"0.cls": b"cat", "1.cls": b"dog"}, "0.cls holds no whole number from 0 as a label.*give each class a folder"),
        ({"0.json": b'{"label": "cat"}', "1.json": b"{}"}, "0.json holds no whole number"),
        ({"0.json": b"[" * 10000, "1.json": b"{}"}, "0.json holds no whole number"),
        ({"0.cls": b"9" * 19, "1.cls": b"0"}, "at most 1048576 classes"),
        ({"0.cls": b"-7", "1.cls": b"0"}, "0.cls holds no whole number from 0"),
    ],
)
def test_labels_beside_images_that_are_none(tmp_path, files, message):
    folder = image_folder(tmp_path / "in", {"0.png": FILES[0], "1.png": FILES[1]} | files)
    with pytest.raises(UserError, match=message):
        image_source(folder)
