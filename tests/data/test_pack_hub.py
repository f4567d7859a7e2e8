"""Folders as the Hugging Face hub and save_to_disk of its library have them: every label is the one that its file gives
it, no file is missing or foreign, and nothing reaches the network unasked."""

import pickle
import socket
from pathlib import Path

import datasets
import published as pub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Array2D, Array3D, ClassLabel, Dataset, DatasetDict, Features, List, Value
from packed import refused
from published import by_content, same, unpacked

from fdtrain.commands.entry import main
from fdtrain.data.pack import pack
from fdtrain.data.sources.hub import hub
from fdtrain.data.sources.rows import Choice

PICTURES = pub.random_images(12, 8)
DATA = [pub.encoded(picture) for picture in PICTURES]
GREY = PICTURES[..., 0]
CLASSES = ["cat", "dog", "emu"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The library's cache is the test's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def rows(images: range, nulls: tuple[int, ...] = (), names: list[str] = CLASSES) -> Dataset:
    """Embedded images and named classes, as the library holds them."""
    content = [None if i in nulls else {"bytes": DATA[i], "path": f"{i}.png"} for i in images]
    labels = ClassLabel(names=names)
    features = Features({"image": datasets.Image(), "label": labels})
    return Dataset.from_dict({"image": content, "label": [i % 3 for i in images]}, features=features)


def written(path: Path, content: Dataset | pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Dataset):
        content.to_parquet(path)
    else:
        pq.write_table(content, path, row_group_size=5)


def raw(images: range, labels: object = None) -> pa.Table:
    columns = {"image": pa.array([DATA[i] for i in images], pa.binary())}
    if labels is not None:
        columns["label"] = labels if isinstance(labels, pa.Array) else pa.array(labels)
    return pa.table(columns)


def source(folder: Path, share: int = 100, **choice):
    return hub(str(folder), "some", Choice(**choice), share)


def not_packed(folder: Path, message: str, **choice) -> None:
    with refused(message):
        pack(source(folder, **choice), folder.parent / "refused")


@pytest.mark.parametrize("form", ["hub", "save_to_disk"])
def test_splits_classes_and_images(tmp_path, form):
    if form == "hub":
        for name, images in (("train-00000-of-00002", range(5)), ("train-00001-of-00002", range(5, 8))):
            written(tmp_path / "in" / "data" / f"{name}.parquet", rows(images))
        written(tmp_path / "in" / "data" / "validation-00000-of-00001.parquet", rows(range(8, 12)))
    else:
        DatasetDict(train=rows(range(8)), validation=rows(range(8, 12))).save_to_disk(tmp_path / "in")
    # As worker processes have it.
    parts = pickle.loads(pickle.dumps(source(tmp_path / "in", share=3)))
    description = pack(parts, tmp_path / "out", shard_images=3)
    assert description.classes == CLASSES
    assert description.source == "in (datasets, images 'image', labels 'label')"
    assert [shard.images for shard in description.splits["train"]] == [3, 3, 2]
    same(tmp_path / "out", "train", PICTURES[:8], [i % 3 for i in range(8)])
    same(tmp_path / "out", "valid", PICTURES[8:], [i % 3 for i in range(8, 12)])


def test_one_saved_data_set(tmp_path):
    """An interrupted pack goes on from any row."""
    rows(range(12)).save_to_disk(tmp_path / "in")
    (tmp_path / "in" / "cache-0123456789abcdef.arrow").write_bytes(b"of map and filter")
    pack(source(tmp_path / "in"), tmp_path / "out")
    same(tmp_path / "out", "train", PICTURES, [i % 3 for i in range(12)])
    [part] = source(tmp_path / "in").splits["train"]
    read = part.open()
    for row in (11, 3, 4, 5, 0):
        assert read(row)[:2] == (DATA[row], row % 3)
    [again] = source(tmp_path / "in").splits["train"]
    assert again.identity == part.identity


def test_one_file(tmp_path):
    written(tmp_path / "in", rows(range(4)))
    main(["pack", "hub", str(tmp_path / "in"), str(tmp_path / "out"), "--no-config", "--workers", "1"])
    same(tmp_path / "out", "train", PICTURES[:4], [0, 1, 2, 0])


def test_configurations_are_those_of_the_readme(tmp_path):
    for number, name in enumerate(("coarse", "fine")):
        written(tmp_path / "in" / name / "train-00000-of-00001.parquet", rows(range(6 * number, 6 * number + 6)))
    lines = [f"- config_name: {name}\n  data_files: {name}/*.parquet\n" for name in ("coarse", "fine")]
    (tmp_path / "in" / "README.md").write_text(f"---\nconfigs:\n{''.join(lines)}---\n")
    not_packed(tmp_path / "in", "Config name is missing")
    not_packed(tmp_path / "in", "BuilderConfig 'middle' not found", configuration="middle")
    description = pack(source(tmp_path / "in", configuration="fine"), tmp_path / "out")
    assert "configuration 'fine'" in description.source
    same(tmp_path / "out", "train", PICTURES[6:], [i % 3 for i in range(6, 12)])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train-00000-of-00003", "train-00002-of-00003"], "train: part 1 of 3 is missing"),
        (["train-00000-of-00001", "train-00000-of-00001-0a1b"], "2 files of 1 parts"),
        (["a/train-00000-of-00001", "b/train-00000-of-00001"], "two sets of files, a/train and b/train. Give the"),
        (["train-00000-of-999999999"], "part 1 of 999999999 is missing"),
        (["train-00000-of-00001", "test-00000-of-00001"], "name different classes, or in another order"),
    ],
)
def test_files_that_do_not_belong_together(tmp_path, names, message):
    for name in names:
        content = rows(range(3), names=["dog", "cat", "emu"] if name.startswith("test") else CLASSES)
        written(tmp_path / "in" / f"{name}.parquet", content)
    not_packed(tmp_path / "in", message)


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        (["dog", "cat", None, "emu"], ["cat", "dog", "emu"], [1, 0, -1, 2]),
        ([True, False, None, True], ["False", "True"], [1, 0, -1, 1]),
        ([2.0, 0.0, float("nan"), 1.0], ["0", "1", "2"], [2, 0, -1, 1]),
        (pa.array([2, 0, None, 1], pa.uint8()), ["0", "1", "2"], [2, 0, -1, 1]),
        ([None, None, None, None], [], [-1] * 4),
    ],
)
def test_labels_of_every_type(tmp_path, labels, classes, expected):
    written(tmp_path / "in" / "train.parquet", raw(range(4), labels))
    description = pack(source(tmp_path / "in"), tmp_path / "out")
    assert description.classes == classes
    assert by_content(*unpacked(tmp_path / "out", "train")) == by_content(PICTURES[:4], expected)


def test_text_labels_of_all_splits_together(tmp_path):
    written(tmp_path / "in" / "train.parquet", raw(range(0, 2), ["b", "d"]))
    written(tmp_path / "in" / "test.parquet", raw(range(2, 4), ["a", "d"]))
    assert pack(source(tmp_path / "in"), tmp_path / "out").classes == ["a", "b", "d"]
    same(tmp_path / "out", "train", PICTURES[:2], [1, 2])
    same(tmp_path / "out", "test", PICTURES[2:4], [0, 2])


def test_columns_are_chosen_and_others_named(tmp_path):
    content = pa.table({"image": DATA[:2], "caption": ["x", "y"], "kind": ["p", "q"]})
    written(tmp_path / "in" / "train.parquet", content)
    assert source(tmp_path / "in").notes == ("columns that are not packed: caption, kind.",)
    assert source(tmp_path / "in", label="kind").classes == ["p", "q"]
    written(tmp_path / "other" / "train.parquet", raw(range(2), [0, 1]))
    assert source(tmp_path / "other", label="").classes == []


def test_rows_without_an_image(tmp_path):
    DatasetDict(train=rows(range(8), (0, 3)), validation=rows(range(8, 12), (9,))).save_to_disk(tmp_path / "in")
    with refused(r"3 images of .* cannot be packed[^|]*train, row 0: no image \(null\)"):
        pack(source(tmp_path / "in"), tmp_path / "refused")
    packed = source(tmp_path / "in", share=2, skip_nulls=True)
    assert packed.notes == ("rows without an image, skipped: 3 (train, row 0; train, row 3; valid, row 1).",)
    pack(packed, tmp_path / "out", shard_images=2)
    train, valid = [1, 2, 4, 5, 6, 7], [8, 10, 11]
    same(tmp_path / "out", "train", PICTURES[train], [i % 3 for i in train])
    same(tmp_path / "out", "valid", PICTURES[valid], [i % 3 for i in valid])


@pytest.mark.parametrize(
    ("form", "pixels", "feature"),
    [
        ("hub", PICTURES, Array3D((8, 8, 3), "uint8")),
        ("save_to_disk", GREY, Array2D((8, 8), "uint8")),
        ("hub", PICTURES.transpose(0, 3, 1, 2), List(List(List(Value("int64"))))),
        ("save_to_disk", GREY, List(List(Value("int32"), length=8), length=8)),
    ],
)
def test_columns_of_arrays(tmp_path, form, pixels, feature):
    content = Dataset.from_dict({"img": pixels.tolist()}, features=Features({"img": feature}))
    if form == "hub":
        written(tmp_path / "in" / "train.parquet", content)
    else:
        content.save_to_disk(tmp_path / "in")
    pack(source(tmp_path / "in"), tmp_path / "out")
    same(tmp_path / "out", "train", PICTURES if pixels.ndim == 4 else GREY[..., None], None)


def nested(depth: int, value: pa.DataType) -> pa.DataType:
    return value if depth == 0 else pa.list_(nested(depth - 1, value))


BYTES, ENCODED = pa.uint8(), pa.struct([("bytes", pa.binary()), ("path", pa.string())])
A = DATA[0]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"img": pa.array([[[1, 2], [3]]], nested(2, BYTES))}, {}, "row 0: rows of pixels of different lengths"),
        ({"img": pa.array([[[1, 2], [3, None]]], nested(2, BYTES))}, {}, "pixels that are not all whole numbers"),
        ({"img": pa.array([[[1, 2], [3, 256]]], nested(2, pa.int64()))}, {}, "not all whole numbers from 0 to 255"),
        ({"img": pa.array([[[1, 2]]], nested(2, BYTES))}, {}, "2x1 pixels: not square"),
        ({"label": [1]}, {}, "image columns: none"),
        ({"a": [A], "b": [A]}, {}, "image columns: a, b. Choose one with --image-column"),
        ({"a": [A]}, {"image": "x"}, r"has no column 'x' \(it has: a\)"),
        ({"a": [A], "label": [1], "labels": [1]}, {}, "label columns: label, labels. Choose one"),
        ({"a": [A], "x": [1.5]}, {"label": "x"}, "label 1.5 is no whole number"),
        ({"a": [A], "x": [[1]]}, {"label": "x"}, "column 'x' is of List.*, expected whole numbers, texts"),
        ({"a": [1]}, {"image": "a"}, "column 'a' is of int64, no images"),
        ({"a": [A], "x": [2**40]}, {"label": "x"}, "at most 1048576 classes"),
        ({"a": [A, None]}, {}, r"row 1: no image \(null\).*--null-images skip"),
        ({"a": pa.array([{"bytes": None, "path": "/etc/passwd"}], ENCODED)}, {}, "row 0: no image bytes"),
    ],
)
def test_columns_that_cannot_be_packed(tmp_path, columns, options, message):
    written(tmp_path / "in" / "train.parquet", pa.table(columns))
    not_packed(tmp_path / "in", message, **options)


README = b"---\nconfigs:\n- config_name: x\n  data_files: %b\n---\n"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "cannot be opened by datasets"),
        ({"train.csv": b"a,b\n1,2\n"}, "reads by 'csv', which hold no images"),
        ({"in.py": b"raise SystemExit(7)"}, "cannot be opened by datasets"),
        ({"state.json": b"[" * 100_000, "dataset_info.json": b"{}"}, "cannot be opened by datasets"),
        ({"README.md": README % b"/etc/host*"}, "cannot be opened by datasets|not in it"),
    ],
    ids=str,
)
def test_folders_that_are_none(tmp_path, files, message):
    (tmp_path / "in").mkdir()
    for name, data in files.items():
        (tmp_path / "in" / name).write_bytes(data)
    not_packed(tmp_path / "in", message)


@pytest.mark.parametrize("kind", ["http", "s3"])
def test_a_folder_that_names_urls_reaches_nobody(tmp_path, monkeypatch, kind):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "README.md").write_bytes(README % (f"{url}/a" if kind == "http" else "s3://a/b").encode())
        not_packed(tmp_path / "in", "network. Add --online" if kind == "http" else "cannot be opened")
        with pytest.raises(BlockingIOError):
            server.accept()


def test_names_are_not_looked_up_unasked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with refused(r"no folder ylecun/mnist, and no data set .* fetched before .*add --online"):
        hub("ylecun/mnist", "some", Choice(), 100)
