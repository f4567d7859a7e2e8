"""Folders of save_to_disk, in the layout of datasets 5, and columns of arrays, which parquet has as well."""

import json
from pathlib import Path

import numpy as np
import published as pub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_pack_sources import same

from fdtrain.data.pack import pack
from fdtrain.data.sources.arrow import arrow
from fdtrain.data.sources.parquet import parquet
from fdtrain.data.sources.rows import Choice
from fdtrain.errors import UserError

PICTURES = pub.random_images(12, 8)
ENCODED = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
CLASSES = {"names": ["cat", "dog", "emu"], "_type": "ClassLabel"}


def table(images: range, nulls: tuple[int, ...] = ()) -> pa.Table:
    """As ``Features({"image": Image(), "label": ClassLabel(...)})`` are stored."""
    rows = [None if i in nulls else {"bytes": pub.encoded(PICTURES[i]), "path": None} for i in images]
    about = {"info": {"features": {"image": {"_type": "Image"}, "label": CLASSES}}}
    columns = {"image": pa.array(rows, ENCODED), "label": pa.array([i % 3 for i in images], pa.int64())}
    return pa.table(columns).replace_schema_metadata({"huggingface": json.dumps(about)})


def arrays(pixels: np.ndarray, kind: pa.DataType, feature: dict | None = None) -> pa.Table:
    """As ``Array2D``, ``Array3D`` and lists of lists are stored: the extension's name is in the field's metadata."""
    field = pa.field("img", kind)
    about = {}
    if feature:
        name = f"datasets.features.features.{feature['_type']}ExtensionType"
        description = json.dumps([feature["shape"], feature["dtype"]])
        field = field.with_metadata({"ARROW:extension:name": name, "ARROW:extension:metadata": description})
        about = {"huggingface": json.dumps({"info": {"features": {"img": feature}}})}
    return pa.table([pa.array(pixels.tolist(), kind)], schema=pa.schema([field], metadata=about))


def saved(folder: Path, parts: list[pa.Table], rows: int = 2, split: str | None = None) -> Path:
    """What ``Dataset.save_to_disk`` writes: streams of batches (1,000 rows, or fewer where they are large)."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{len(parts):05d}.arrow" for i in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        with pa.ipc.new_stream(folder / name, part.schema) as stream:
            stream.write_table(part, max_chunksize=rows)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "c72c76c998d070b0"}
    state |= {"_format_columns": None, "_format_kwargs": {}, "_format_type": None, "_split": split}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"citation": "", "description": ""}))
    return folder


def saved_dict(folder: Path, nulls: tuple[int, ...] = ()) -> Path:
    """What ``DatasetDict.save_to_disk`` writes."""
    saved(folder / "train", [table(range(0, 5), nulls), table(range(5, 8), nulls)])
    saved(folder / "validation", [table(range(8, 12), nulls)])
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation"]}))
    return folder


def test_a_dictionary_of_splits(tmp_path):
    description = pack(arrow(saved_dict(tmp_path / "in"), "some", Choice()), tmp_path / "out", shard_images=3)
    assert description.classes == ["cat", "dog", "emu"]
    assert description.source == "in (Arrow, images 'image', labels 'label')"
    same(tmp_path / "out", "train", PICTURES[:8], [i % 3 for i in range(8)])
    same(tmp_path / "out", "valid", PICTURES[8:], [i % 3 for i in range(8, 12)])


@pytest.mark.parametrize(("split", "ours"), [(None, "train"), ("test", "test")])
def test_one_data_set(tmp_path, split, ours):
    saved(tmp_path / "in", [table(range(12))], split=split)
    (tmp_path / "in" / "cache-0123456789abcdef.arrow").write_bytes(b"of map and filter")
    pack(arrow(tmp_path / "in", "some", Choice()), tmp_path / "out")
    same(tmp_path / "out", ours, PICTURES, [i % 3 for i in range(12)])


def test_an_interrupted_pack_goes_on_from_any_group(tmp_path):
    source = arrow(saved(tmp_path / "in", [table(range(12))], rows=5), "some", Choice())
    read = source.splits["train"][0].open()
    for row in (11, 3, 4, 5, 0):
        np.testing.assert_array_equal(read(row)[0], PICTURES[row])


def test_several_data_sets_are_chosen_by_name(tmp_path):
    saved_dict(tmp_path / "in" / "coarse")
    saved(tmp_path / "in" / "fine", [table(range(3))])
    saved(tmp_path / "in" / "test", [table(range(4))])
    with pytest.raises(UserError, match=r"several data sets: \., coarse, fine\. Choose one with --config NAME"):
        arrow(tmp_path / "in", "some", Choice())
    with pytest.raises(UserError, match="no data set 'middle'"):
        arrow(tmp_path / "in", "some", Choice(configuration="middle"))
    for name, split, count in (("coarse", "train", 8), ("fine", "train", 3), (".", "test", 4)):
        source = arrow(tmp_path / "in", "some", Choice(configuration=name))
        assert sum(part.count() for part in source.splits[split]) == count


@pytest.mark.parametrize("form", ["arrow", "parquet"])
def test_rows_without_an_image(tmp_path, form):
    if form == "arrow":
        saved_dict(tmp_path / "in", nulls=(0, 3, 9))
        source = arrow
    else:
        (tmp_path / "in").mkdir()
        for split, images in (("train", range(0, 8)), ("validation", range(8, 12))):
            pq.write_table(table(images, (0, 3, 9)), tmp_path / "in" / f"{split}.parquet", row_group_size=2)
        source = parquet
    with pytest.raises(UserError, match=r"3 images of .* cannot be packed[^|]*row 0: no image \(null\)"):
        pack(source(tmp_path / "in", "some", Choice()), tmp_path / "refused")
    packed = source(tmp_path / "in", "some", Choice(skip_nulls=True))
    [note] = packed.notes
    assert note.startswith("rows without an image, skipped: 3 (")
    assert "row 0; " in note
    assert note.endswith("row 1).")
    pack(packed, tmp_path / "out", shard_images=2)
    train, valid = [1, 2, 4, 5, 6, 7], [8, 10, 11]
    same(tmp_path / "out", "train", PICTURES[train], [i % 3 for i in train])
    same(tmp_path / "out", "valid", PICTURES[valid], [i % 3 for i in valid])


def nested(depth: int, value: pa.DataType) -> pa.DataType:
    return value if depth == 0 else pa.list_(nested(depth - 1, value))


GREY = PICTURES[..., 0]
BYTES = pa.uint8()


@pytest.mark.parametrize("form", ["arrow", "parquet"])
@pytest.mark.parametrize(
    ("pixels", "kind", "feature"),
    [
        (PICTURES, nested(3, BYTES), {"shape": [8, 8, 3], "dtype": "uint8", "_type": "Array3D"}),
        (GREY, nested(2, BYTES), {"shape": [8, 8], "dtype": "uint8", "_type": "Array2D"}),
        (PICTURES, nested(3, pa.int64()), None),
        (PICTURES.transpose(0, 3, 1, 2), nested(3, BYTES), None),
        (GREY, pa.list_(pa.list_(pa.int32(), 8), 8), None),
    ],
)
def test_columns_of_arrays(tmp_path, form, pixels, kind, feature):
    content = arrays(pixels, kind, feature)
    if form == "arrow":
        source = arrow(saved(tmp_path / "in", [content]), "some", Choice())
    else:
        (tmp_path / "in").mkdir()
        pq.write_table(content, tmp_path / "in" / "train.parquet")
        source = parquet(tmp_path / "in", "some", Choice())
    pack(source, tmp_path / "out")
    same(tmp_path / "out", "train", PICTURES if pixels.ndim == 4 else GREY[..., None], None)


@pytest.mark.parametrize(
    ("rows", "kind", "message"),
    [
        ([[[1, 2], [3]]], nested(2, BYTES), "row 0: rows of pixels of different lengths"),
        ([[[1, 2], None]], nested(2, BYTES), "row 0: rows of pixels of different lengths"),
        ([[[1, 2], [3, None]]], nested(2, BYTES), "row 0: pixels that are null"),
        ([[[1, 2], [3, 256]]], nested(2, pa.int64()), "not all from 0 to 255"),
        ([[[1, 2], [-3, 25]]], nested(2, pa.int8()), "not all from 0 to 255"),
        ([[[1, 2]]], nested(2, BYTES), "2x1 pixels: not square"),
        ([[]], nested(2, BYTES), "an array of uint8 of shape"),
        ([[[[1, 2]], [[3, 4]]]], nested(3, BYTES), r"shape \(2, 1, 2\)"),
        ([[[0.5, 1.0]]], nested(2, pa.float32()), "image columns: none"),
        ([[1, 2]], nested(1, BYTES), "image columns: none"),
        ([[[1]], [[1, 2], [3, 4]]], nested(2, BYTES), "2x2 pixels, expected 1x1"),
    ],
)
def test_arrays_that_are_no_images(tmp_path, rows, kind, message):
    saved(tmp_path / "in", [pa.table({"img": pa.array(rows, kind)})])
    with pytest.raises(UserError, match=message):
        pack(arrow(tmp_path / "in", "some", Choice()), tmp_path / "out")


def spoil(folder: Path, how: str) -> None:
    state, data = folder / "train" / "state.json", folder / "train" / "data-00001-of-00002.arrow"
    content = json.loads(state.read_text())
    if how == "a missing file":
        data.unlink()
    elif how == "a missing split":
        state.unlink()
    elif how == "a split too many":
        saved(folder / "test", [table(range(2))])
    elif how == "a split of two names":
        saved(folder / "val", [table(range(2))])
        (folder / "dataset_dict.json").write_text('{"splits": ["train", "validation", "val"]}')
    elif how == "a file outside":
        content["_data_files"] = [{"filename": "../validation/data-00000-of-00001.arrow"}]
        state.write_text(json.dumps(content))
    elif how == "a file twice":
        content["_data_files"] *= 2
        state.write_text(json.dumps(content))
    elif how == "an index":
        state.write_text(json.dumps(content | {"_indices_data_files": [{"filename": "indices.arrow"}]}))
    elif how == "no JSON":
        state.write_text("{")
    elif how == "a list":
        state.write_text("[" * 100_000)
    elif how == "no Arrow":
        data.write_bytes(b"ARROW1 and so on")
    elif how == "cut short":
        data.write_bytes(data.read_bytes()[:-600])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("a missing file", r"names train/data-00001-of-00002\.arrow, which .* lacks"),
        ("a missing split", r"names split 'train', whose folder lacks state\.json"),
        ("a split too many", r"test is no split that the dataset_dict\.json beside it names"),
        ("a split of two names", "split 'valid' twice"),
        ("a file outside", r"files that are no \.arrow files beside it"),
        ("a file twice", "names a file twice"),
        ("an index", "rows are chosen by an index"),
        ("no JSON", r"state\.json is not JSON"),
        ("a list", r"state\.json is not JSON"),
        ("no Arrow", "is not a stream of Arrow, or cut short"),
        ("cut short", r"data-00001-of-00002\.arrow"),
    ],
)
def test_folders_that_are_not_as_saved(tmp_path, how, message):
    spoil(saved_dict(tmp_path / "in"), how)
    with pytest.raises(UserError, match=message):
        pack(arrow(tmp_path / "in", "some", Choice()), tmp_path / "out")


def test_no_saved_data_set(tmp_path):
    with pytest.raises(UserError, match=r"is no folder of save_to_disk"):
        arrow(tmp_path, "some", Choice())


def test_damaged_streams_are_one_line(tmp_path):
    """Changed anywhere: it reads all the same, or one line says that it does not."""
    saved(tmp_path / "in", [table(range(12))])
    path = tmp_path / "in" / "data-00000-of-00001.arrow"
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(300):
        data = bytearray(whole)
        place = int(rng.integers(len(data)))
        data[place : place + 4] = rng.bytes(4)
        path.write_bytes(data[: len(whole)])
        try:
            [part] = arrow(tmp_path / "in", "some", Choice(skip_nulls=True)).splits["train"]
            read = part.open()
            for index in range(part.count()):
                read(index)
        except UserError:
            refused += 1
    assert refused
