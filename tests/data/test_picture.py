"""Every kind of picture has one decision (the table in docs/packing.md), whatever source it is from."""

import io

import numpy as np
import published as pub
import pytest
from PIL import Image
from test_pack_sources import image_folder, unpacked

from fdtrain.data.pack import pack
from fdtrain.data.sources.images import images
from fdtrain.errors import UserError

RGB = Image.fromarray(pub.random_images(1, (4, 3))[0]).resize((20, 20), Image.Resampling.BICUBIC)


def saved(picture: Image.Image, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 3
    return saved(RGB, exif=exif)


def animated(form: str) -> bytes:
    return saved(RGB, form, save_all=True, append_images=[RGB.rotate(90)], duration=10)


def clear_palette() -> bytes:
    return saved(RGB.quantize(16), transparency=0)


CONVERTED = {
    "grey": saved(RGB.convert("L")),
    "two levels": saved(RGB.convert("1")),
    "palette": saved(RGB.quantize(16)),
    "palette BMP": saved(RGB.quantize(16), "BMP"),
    "CMYK": saved(RGB.convert("CMYK"), "JPEG"),
}
REFUSED = {
    "16 bits": (saved(Image.new("I;16", (20, 20))), "is of 16 bits|not of 8 bits a channel"),
    "transparent": (saved(RGB.convert("RGBA")), "has transparency"),
    "transparent grey": (saved(RGB.convert("LA")), "has transparency"),
    "transparent palette": (clear_palette(), "has transparency"),
    "animated PNG": (animated("PNG"), "is animated"),
    "animated WebP": (animated("WEBP"), "is animated"),
    "GIF": (saved(RGB, "GIF"), "is not an image"),
    "TIFF": (saved(RGB, "TIFF"), "is not an image"),
    "not square": (saved(RGB.resize((20, 10))), r"pixels(, expected|: not square).*--size"),
    "another size": (saved(RGB.resize((10, 10))), "pixels, expected .*--size"),
}


def source(folder, data: bytes, resize: int | None = None):
    """An RGB picture and another."""
    image_folder(folder, {f"{i}.png": picture for i, picture in enumerate([saved(RGB), data])})
    return images(folder, None, 0, "some", resize, 3, 10)


def stored(folder) -> set[bytes]:
    return {image.tobytes() for image in unpacked(folder, "train")[0]}


@pytest.mark.parametrize("what", CONVERTED)
def test_pictures_that_are_converted(tmp_path, what):
    pack(source(tmp_path / "in", CONVERTED[what]), tmp_path / "out")
    expected = Image.open(io.BytesIO(CONVERTED[what])).convert("RGB")
    assert stored(tmp_path / "out") == {np.asarray(RGB).tobytes(), np.asarray(expected).tobytes()}


def test_pictures_that_are_turned(tmp_path):
    pack(source(tmp_path / "in", rotated()), tmp_path / "out")
    assert stored(tmp_path / "out") == {np.asarray(RGB).tobytes(), np.asarray(RGB.rotate(180)).tobytes()}


def test_pictures_that_are_cut(tmp_path):
    wide = saved(RGB.resize((40, 20)))
    pack(source(tmp_path / "in", wide, resize=20), tmp_path / "out")
    middle = RGB.resize((40, 20)).crop((10, 0, 30, 20))
    assert stored(tmp_path / "out") == {np.asarray(RGB).tobytes(), np.asarray(middle).tobytes()}


@pytest.mark.parametrize("what", REFUSED)
def test_pictures_that_are_refused(tmp_path, what):
    data, message = REFUSED[what]
    with pytest.raises(UserError, match=rf"[01]\.png.*({message})"):
        pack(source(tmp_path / "in", data), tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()
