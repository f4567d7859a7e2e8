"""Photographs of mixed sizes: what dataset.json says is done to them."""

import io
import json

import published as pub
import pytest
from PIL import Image
from test_pack_sources import image_folder

from fdtrain.data.dataset import read_description
from fdtrain.data.pack import pack
from fdtrain.data.sources.images import images
from fdtrain.errors import UserError


def saved(picture: Image.Image, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def plain(number: int, size: tuple[int, int]) -> bytes:
    """A photograph of one colour."""
    return saved(Image.new("RGB", size, (number, 0, 0)))


def source(folder, size: int | None = 8, channels: int | None = None, holdout: int = 0):
    return images(folder, None, holdout, "some", size, channels, 12)


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


def test_what_was_done_is_in_the_description(tmp_path):
    files = photographs() | {"tiny.png": plain(0, (6, 7))}
    folder = image_folder(tmp_path / "in", files)
    pack(source(folder, channels=3, holdout=1), tmp_path / "out")
    content = json.loads((tmp_path / "out" / "dataset.json").read_text())["preparation"]
    assert content == {
        "method": "largest centre square, Lanczos to 8x8",
        "photographs": {"train": len(files) - 1, "test": 1},
        "crops": 1,
        "pixels": ["6x7", content["pixels"][1], "60x50"],
        "turned": 1,
        "converted": {"CMYK to RGB": 1, "grey to RGB": 1, "palette to RGB": 1},
        "enlarged": 1,
    }
    assert content["pixels"][1] in ("40x20", "20x40")
    assert read_description(tmp_path / "out").preparation.model_dump() == content


def test_a_description_without_it_is_read(tmp_path):
    folder = image_folder(tmp_path / "in", {"a.png": plain(0, (8, 8))})
    pack(source(folder, size=None), tmp_path / "out")
    assert "preparation" not in json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert read_description(tmp_path / "out").preparation is None


def test_bad_photographs_are_reported_by_the_packer(tmp_path):
    folder = image_folder(tmp_path / "in", {"a.png": plain(0, (20, 20)), "b.jpg": b"hello"})
    with pytest.raises(UserError, match=r"^[^\n]*b\.jpg is not an image[^\n]*$"):
        pack(source(folder), tmp_path / "out")
