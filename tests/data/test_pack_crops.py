"""Photographs of mixed sizes: what is cut from them, which are held out, and what dataset.json says of it."""

import io
import json
import sys

import numpy as np
import published as pub
import pytest
from PIL import Image
from test_pack_sources import image_folder, unpacked

from fdtrain.data.dataset import read_description
from fdtrain.data.pack import pack
from fdtrain.data.sources.crops import squares
from fdtrain.data.sources.images import images
from fdtrain.data.sources.photos import PHOTOGRAPHS, photos
from fdtrain.errors import UserError


def saved(picture: Image.Image, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def plain(number: int, size: tuple[int, int]) -> bytes:
    """A photograph of one colour, which its crops show."""
    return saved(Image.new("RGB", size, (number, 0, 0)))


def source(
    folder, crops: int | None = 5, size: int | None = 8, channels: int | None = None, holdout: int = 0, share=12
):
    return images(folder, None, holdout, "some", size, channels, share, crops)


def test_squares_are_inside_and_of_all_scales():
    found = squares("a.png", (300, 200), 8, 20_000)
    left, top, side = found.T
    assert (side.min(), side.max()) == (8, 200)
    assert left.min() == top.min() == 0
    assert (left + side).max() == 300
    assert (top + side).max() == 200
    # Uniform in the logarithm: half of them are below the geometric mean.
    assert np.median(side) == pytest.approx((8 * 201) ** 0.5, rel=0.05)
    # Every place is as probable as any other: the room left and right of a crop agrees on average.
    assert (left / (300 - side)).mean() == pytest.approx(0.5, abs=0.01)
    np.testing.assert_array_equal(found[:10], squares("a.png", (300, 200), 8, 10))
    assert not np.array_equal(found[:10], squares("b.png", (300, 200), 8, 10))
    np.testing.assert_array_equal(squares("a.png", (8, 8), 8, 3), [[0, 0, 8]] * 3)


def test_train_and_test_are_of_different_photographs(tmp_path):
    folder = image_folder(tmp_path / "in", {f"{i}.png": plain(i, (20 + i, 30)) for i in range(10)})
    description = pack(source(folder, holdout=3), tmp_path / "out", shard_images=12, workers=2)
    assert (description.images("train"), description.images("test")) == (35, 15)
    shown = {}
    for split in ("train", "test"):
        pixels, _ = unpacked(tmp_path / "out", split)
        assert (pixels == pixels[:, :1, :1]).all()
        shown[split] = set(pixels[:, 0, 0, 0].tolist())
    assert (len(shown["train"]), len(shown["test"])) == (7, 3)
    assert not shown["train"] & shown["test"]
    archive = pub.write_zip(tmp_path / "in.zip", {path.name: path.read_bytes() for path in folder.iterdir()})
    assert pack(source(archive, holdout=3), tmp_path / "zip", shard_images=12).splits == description.splits


def test_crops_are_resized_squares_of_the_photograph(tmp_path):
    picture = Image.fromarray(pub.random_images(1, (4, 5))[0]).resize((40, 30))
    folder = image_folder(tmp_path / "in", {"cat/a.png": saved(picture), "dog/b.png": plain(0, (9, 9))})
    read = next(part for part in source(folder, share=5).splits["train"] if part.members[0].name == "cat/a.png").open()
    for index, (left, top, side) in enumerate(squares("cat/a.png", (40, 30), 8, 5)):
        square = picture.crop((left, top, left + side, top + side))
        expected = np.asarray(square.resize((8, 8), Image.Resampling.LANCZOS), int)
        pixels, label = read(index)
        # Large reductions are done in two steps.
        assert np.abs(pixels - expected).max() <= 3
        assert label == 0
    native = source(folder, size=9, share=5).splits["train"]
    whole = next(part for part in native if part.members[0].name == "dog/b.png").open()
    np.testing.assert_array_equal(whole(3)[0], np.zeros((9, 9, 3)))


def photographs() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = Image.fromarray(pub.random_images(1, (20, 40))[0])
    return {
        "turned.jpg": saved(wide, "JPEG", exif=exif),
        "grey.png": saved(wide.convert("L")),
        "palette.png": saved(wide.quantize(16)),
        "cmyk.jpg": saved(wide.convert("CMYK"), "JPEG"),
        "large.png": plain(0, (60, 50)),
    }


@pytest.mark.parametrize("crops", [3, None])
def test_what_was_done_is_in_the_description(tmp_path, crops):
    files = photographs() | ({} if crops else {"tiny.png": plain(0, (6, 7))})
    folder = image_folder(tmp_path / "in", files)
    pack(source(folder, crops=crops, channels=3, holdout=1), tmp_path / "out")
    content = json.loads((tmp_path / "out" / "dataset.json").read_text())["preparation"]
    assert content == {
        "method": "3 random squares of each photograph, sides from 8 to its short side, Lanczos to 8x8"
        if crops
        else "largest centre square, Lanczos to 8x8",
        "photographs": {"train": len(files) - 1, "test": 1},
        "crops": crops or 1,
        "pixels": ["40x20" if crops else "6x7", content["pixels"][1], "60x50"],
        "turned": 1,
        "converted": {"CMYK to RGB": 1, "grey to RGB": 1, "palette to RGB": 1},
        "enlarged": 0 if crops else 1,
    }
    assert content["pixels"][1] in ("40x20", "20x40")
    assert read_description(tmp_path / "out").preparation.model_dump() == content


def test_a_description_without_it_is_read(tmp_path):
    folder = image_folder(tmp_path / "in", {"a.png": plain(0, (8, 8))})
    pack(source(folder, crops=None, size=None), tmp_path / "out")
    assert "preparation" not in json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert read_description(tmp_path / "out").preparation is None


def animated() -> bytes:
    frames = [Image.new("RGB", (20, 20), (i, 0, 0)) for i in range(2)]
    return saved(frames[0], "PNG", save_all=True, append_images=frames[1:])


BAD = {
    "small.png": (plain(0, (7, 20)), "7x20 pixels, too few for crops of 8x8"),
    "clear.png": (saved(Image.new("RGBA", (20, 20))), "has transparency"),
    "deep.png": (saved(Image.new("I;16", (20, 20))), "of 16 bits"),
    "moving.png": (animated(), "is animated"),
    "text.jpg": (b"hello", "is not an image"),
}


@pytest.mark.parametrize("container", ["folder", "zip"])
def test_photographs_that_cannot_be_cropped_are_all_named(tmp_path, container):
    files = {"good.png": plain(0, (20, 20))} | {name: data for name, (data, _) in BAD.items()}
    path = image_folder(tmp_path / "in", files) if container == "folder" else pub.write_zip(tmp_path / "in.zip", files)
    with pytest.raises(UserError) as error:
        source(path, channels=3)
    first, *lines = str(error.value).splitlines()
    assert first == "5 photographs cannot be cropped. The first 5:"
    for name, (_, problem) in BAD.items():
        assert any(name in line and problem in line for line in lines), problem


def test_a_photograph_with_broken_pixels_is_one_line(tmp_path):
    data = saved(Image.fromarray(pub.random_images(1, 40)[0]))
    folder = image_folder(tmp_path / "in", {"a.png": data[: len(data) // 2]})
    with pytest.raises(UserError, match=r"^[^\n]*a\.png is a broken image[^\n]*$"):
        pack(source(folder), tmp_path / "out")


def test_crops_need_a_size(tmp_path):
    folder = image_folder(tmp_path / "in", {"a.png": plain(0, (20, 20))})
    with pytest.raises(UserError, match=r"needs the size of the images\. Give it by --size"):
        source(folder, size=None)


@pytest.fixture
def skimage(tmp_path, monkeypatch):
    """A package with photographs under their names, which may not be imported."""
    files = {"skimage/__init__.py": b"raise AssertionError"}
    for packages in PHOTOGRAPHS.values():
        files |= {f"skimage/data/{name}": plain(7, (50, 40)) for name in packages["skimage/data"]}
    monkeypatch.syspath_prepend(image_folder(tmp_path / "packages", files))
    monkeypatch.delitem(sys.modules, "skimage", raising=False)


def test_the_photographs_of_the_libraries(tmp_path, skimage):
    description = pack(photos(32, 4, 8), tmp_path / "out", shard_images=8)
    assert (description.name, description.shape) == ("photos32", (3, 32, 32))
    assert (description.images("train"), description.images("test")) == (20, 8)
    assert description.preparation.photographs == {"train": 5, "test": 2}
    assert len({name for packages in PHOTOGRAPHS.values() for names in packages.values() for name in names}) == 7


def test_without_the_libraries(monkeypatch, skimage, tmp_path):
    (tmp_path / "packages" / "skimage" / "data" / "coffee.png").unlink()
    with pytest.raises(UserError, match=r"coffee\.png is missing"):
        photos(32, 4, 8)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"need skimage. Install it: pip install scikit-image"):
        photos(32, 4, 8)
