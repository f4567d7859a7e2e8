"""Folders of the Hugging Face hub: every label is the one that its file gives it, and no file is missing or foreign."""

import json
import shutil
from pathlib import Path

import published as pub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_pack_sources import by_content, same, unpacked

from fdtrain.data.pack import pack
from fdtrain.data.sources.parquet import parquet
from fdtrain.data.sources.rows import Choice
from fdtrain.errors import UserError

PICTURES = pub.random_images(12, 8)
DATA = [pub.encoded(picture) for picture in PICTURES]


def features(names: object) -> dict:
    label = {"_type": "ClassLabel", "names": names}
    return {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}


def write(path: Path, images: range, labels: object = None, about: object = None) -> None:
    columns = {"image": pa.array([DATA[i] for i in images], pa.binary())}
    if labels is not None:
        columns["label"] = labels if isinstance(labels, pa.Array) else pa.array(labels)
    table = pa.table(columns)
    if about is not None:
        text = about if isinstance(about, str) else json.dumps(about)
        table = table.replace_schema_metadata({"huggingface": text})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=5)


def source(folder: Path, label: str | None = None, configuration: str | None = None):
    return parquet(folder, "some", Choice(label=label, configuration=configuration))


def test_class_names_in_another_order_are_mapped_by_name(tmp_path):
    write(tmp_path / "in/data/train-00000-of-00002.parquet", range(0, 6), [0, 1, 2] * 2, features(["a", "b", "c"]))
    write(tmp_path / "in/data/train-00001-of-00002.parquet", range(6, 12), [0, 1, -1] * 2, features(["c", "b", "a"]))
    description = pack(source(tmp_path / "in"), tmp_path / "out")
    assert description.classes == ["a", "b", "c"]
    same(tmp_path / "out", "train", PICTURES, [0, 1, 2, 0, 1, 2, 2, 1, -1, 2, 1, -1])


@pytest.mark.parametrize("other", [features(["a", "b", "d"]), features(["a", "b"]), None])
def test_other_classes_are_refused(tmp_path, other):
    write(tmp_path / "in/data/train-00000-of-00001.parquet", range(0, 6), [0, 1, 2] * 2, features(["a", "b", "c"]))
    write(tmp_path / "in/data/test-00000-of-00001.parquet", range(6, 12), [0, 1, 1] * 2, other)
    if other is None:
        # The column is then found by its name.
        message = "name different classes .*no names"
    else:
        message = r"train-00000-of-00001.parquet name different classes \(a, b.*Pack them apart"
    with pytest.raises(UserError, match=message):
        source(tmp_path / "in")


@pytest.mark.parametrize(
    ("layout", "names"),
    [("{}/train-00000-of-00001.parquet", ("coarse", "fine")), ("{}/train/0000.parquet", ("coarse", "fine"))],
)
def test_configurations_are_chosen_by_name(tmp_path, layout, names):
    for number, name in enumerate(names):
        write(tmp_path / "in" / layout.format(name), range(6 * number, 6 * number + 6), [number] * 6)
    with pytest.raises(UserError, match=r"several configurations: coarse, fine\. Choose one with --config NAME"):
        source(tmp_path / "in")
    with pytest.raises(UserError, match="no configuration 'middle'"):
        source(tmp_path / "in", configuration="middle")
    description = pack(source(tmp_path / "in", configuration="fine"), tmp_path / "out")
    assert "configuration 'fine'" in description.source
    same(tmp_path / "out", "train", PICTURES[6:], [1] * 6)


def test_a_configuration_beside_files_at_the_top(tmp_path):
    write(tmp_path / "in/train-00000-of-00001.parquet", range(6))
    write(tmp_path / "in/small/train-00000-of-00001.parquet", range(3))
    with pytest.raises(UserError, match=r"configurations: \., small"):
        source(tmp_path / "in")
    pack(source(tmp_path / "in", configuration="."), tmp_path / "out")
    same(tmp_path / "out", "train", PICTURES[:6], None)


def test_a_folder_for_each_split_is_no_configuration(tmp_path):
    write(tmp_path / "in/train/train-00000-of-00001.parquet", range(6))
    write(tmp_path / "in/test/test-00000-of-00001.parquet", range(6, 12))
    pack(source(tmp_path / "in"), tmp_path / "out")
    same(tmp_path / "out", "test", PICTURES[6:], None)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train-00000-of-00003", "train-00002-of-00003"], "split 'train' lacks part 1 of the parts 0 to 2"),
        (["train-00000-of-00002"], "lacks part 1"),
        (["train-00000-of-00001", "train-00005-of-00001"], "has part 5 of the parts 0 to 0"),
        (["train-00000-of-00001", "train-00000-of-00001-0a1b"], "are the same part of split 'train'"),
        (["train-00000-of-00001", "train-00000-of-00002"], "of two sets of files for split 'train'"),
        (["val-00000-of-00001", "validation-00000-of-00001"], "of two sets of files for split 'valid'"),
        (["train/0000", "train/0002"], "lacks part 1"),
        (["train/0000", "train/more"], "of two sets of files for split 'train'"),
        (["train-00000-of-999999999"], "lacks part 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 of"),
    ],
)
def test_files_that_are_missing_or_too_many(tmp_path, names, message):
    for name in names:
        write(tmp_path / "in" / f"{name}.parquet", range(3))
    with pytest.raises(UserError, match=message):
        source(tmp_path / "in")


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        (["dog", "cat", None, "emu"], ["cat", "dog", "emu"], [1, 0, -1, 2]),
        (pa.array(["dog", "cat", None, "emu"]).dictionary_encode(), ["cat", "dog", "emu"], [1, 0, -1, 2]),
        ([True, False, None, True], ["False", "True"], [1, 0, -1, 1]),
        ([True, True, True, True], ["False", "True"], [1, 1, 1, 1]),
        ([2.0, 0.0, None, 1.0], ["0", "1", "2"], [2, 0, -1, 1]),
        ([2.0, 0.0, float("nan"), 1.0], ["0", "1", "2"], [2, 0, -1, 1]),
        (pa.array([2, 0, None, 1], pa.uint8()), ["0", "1", "2"], [2, 0, -1, 1]),
        ([None, None, None, None], [], [-1] * 4),
    ],
)
def test_labels_of_every_type(tmp_path, labels, classes, expected):
    write(tmp_path / "in/train.parquet", range(4), labels)
    description = pack(source(tmp_path / "in"), tmp_path / "out")
    assert description.classes == classes
    assert by_content(*unpacked(tmp_path / "out", "train")) == by_content(PICTURES[:4], expected)


def test_text_labels_of_all_files_together(tmp_path):
    write(tmp_path / "in/train.parquet", range(0, 2), ["b", "d"])
    write(tmp_path / "in/test.parquet", range(2, 4), ["a", "d"])
    description = pack(source(tmp_path / "in"), tmp_path / "out")
    assert description.classes == ["a", "b", "d"]
    same(tmp_path / "out", "train", PICTURES[:2], [1, 2])
    same(tmp_path / "out", "test", PICTURES[2:4], [0, 2])


def test_columns_that_differ_between_files(tmp_path):
    write(tmp_path / "in/train.parquet", range(2), ["b", "d"])
    write(tmp_path / "in/test.parquet", range(2), [0, 1])
    with pytest.raises(UserError, match=r"column 'label' is of string in .*train.*, of int64|is of int64 in"):
        source(tmp_path / "in")
    write(tmp_path / "in/test.parquet", range(2))
    with pytest.raises(UserError, match="Choose with --image-column and --label-column"):
        source(tmp_path / "in")
    with pytest.raises(UserError, match="has no column 'label'"):
        source(tmp_path / "in", label="label")
    description = pack(source(tmp_path / "in", label=""), tmp_path / "out")
    assert description.classes == []


def test_columns_that_are_not_packed_are_named(tmp_path):
    table = pa.table({"image": DATA[:2], "caption": ["x", "y"], "score": [0.5, 1.0]})
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "train.parquet")
    assert source(tmp_path / "in").notes == ("columns that are not packed: caption, score.",)


@pytest.mark.parametrize(
    "about",
    [
        "{",
        "[]",
        "5",
        "[" * 100_000,
        {"info": 5},
        {"info": {"features": [1]}},
        {"info": {"features": "x"}},
        features("abc"),
        features([1, 2]),
        features({"0": "a"}),
        features([["a"], ["b"]]),
        features(["a", "a"]),
    ],
    ids=str,
)
def test_descriptions_of_wrong_types(tmp_path, about):
    write(tmp_path / "in/train.parquet", range(2), [0, 1], about)
    with pytest.raises(UserError, match=r"train\.parquet"):
        source(tmp_path / "in")


@pytest.mark.parametrize(
    "about", [{"info": {"features": {"image": 5, "label": "x"}}}, {"info": {}}, {}, features(None)]
)
def test_descriptions_that_say_nothing(tmp_path, about):
    write(tmp_path / "in/train.parquet", range(2), [0, 1], about)
    pack(source(tmp_path / "in"), tmp_path / "out")
    same(tmp_path / "out", "train", PICTURES[:2], [0, 1])


def test_damaged_parquet_is_one_line(tmp_path):
    """Cut or changed anywhere: it reads all the same, or one line says that it does not."""
    import numpy as np

    write(tmp_path / "in/train.parquet", range(12), ["a", "b"] * 6, features(None))
    path = tmp_path / "in" / "train.parquet"
    whole, rng, messages = path.read_bytes(), np.random.default_rng(0), []
    for number in range(150):
        data = bytearray(whole)
        place = int(rng.integers(len(data) // 2, len(data)))
        data[place : place + 2] = rng.bytes(2)
        path.write_bytes(data)
        try:
            pack(source(tmp_path / "in"), tmp_path / f"out{number}")
        except UserError as error:
            messages.append(str(error))
        shutil.rmtree(tmp_path / f"out{number}", ignore_errors=True)
    assert messages
