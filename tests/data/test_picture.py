"""Every kind of picture has one decision (the table in docs/packing.md), whatever source it is from, and something
shows through transparent ones."""

import io
import zlib

import numpy as np
import published as pub
import pytest
from packed import raw_png, refused, write_tar
from PIL import Image, ImageOps
from published import by_content, image_folder, unpacked

from fdtrain.data.adopt import adopt
from fdtrain.data.pack import pack
from fdtrain.data.sources.images import images
from fdtrain.data.sources.picture import Fit, decode, exactly, fit_like

RGB = Image.fromarray(pub.random_images(1, (4, 3))[0]).resize((20, 20), Image.Resampling.BICUBIC)


def saved(picture: Image.Image, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


TURNED = Image.Exif()
TURNED[0x0112] = 6
CONVERTED = {
    "turned": saved(RGB, exif=TURNED),
    "grey": saved(RGB.convert("L")),
    "two levels": saved(RGB.convert("1")),
    "palette": saved(RGB.quantize(16)),
    "CMYK": saved(RGB.convert("CMYK"), "JPEG"),
}
REFUSED = {
    "16 bits": (saved(Image.new("I;16", (20, 20))), "is of 16 bits|not of 8 bits a channel"),
    "16 bits in colours": (raw_png(20, 20, (b"IDAT", zlib.compress(bytes(20 * 121))), bits=16), "is of 16 bits"),
    "transparent": (saved(RGB.convert("RGBA")), "has transparency"),
    "transparent palette": (saved(RGB.quantize(16), transparency=0), "has transparency"),
    "animated": (saved(RGB, "WEBP", save_all=True, append_images=[RGB.rotate(90)], duration=10), "is animated"),
    "GIF": (saved(RGB, "GIF"), "is not an image"),
    "not square": (saved(RGB.resize((20, 10))), r"pixels(, expected|: not square).*--size"),
    "another size": (saved(RGB.resize((10, 10))), "pixels, expected .*--size"),
}


def source(folder, data: bytes):
    """An RGB picture and another."""
    image_folder(folder, {f"{i}.png": picture for i, picture in enumerate([saved(RGB), data])})
    return images(folder, None, 0, "some", None, 3, 10)


def shards(folder, data: bytes) -> dict[str, list[str]]:
    """The same as a shard."""
    return {"train": [str(write_tar(folder / "0.tar", [("0.png", saved(RGB)), ("1.png", data)]))]}


@pytest.mark.parametrize("what", CONVERTED)
def test_pictures_that_are_converted(tmp_path, what):
    pack(source(tmp_path / "in", CONVERTED[what]), tmp_path / "out")
    with refused(r"sample '1': .*Pack all anew with --size 20"):
        adopt(shards(tmp_path, CONVERTED[what]), tmp_path / "adopted", "some")
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(CONVERTED[what]))).convert("RGB")
    pictures = np.stack([np.asarray(RGB), np.asarray(expected)])
    assert by_content(*unpacked(tmp_path / "out", "train")) == by_content(pictures, [-1, -1])


@pytest.mark.parametrize("what", REFUSED)
def test_pictures_that_are_refused(tmp_path, what):
    data, message = REFUSED[what]
    with refused(rf"[01]\.png.*({message})"):
        pack(source(tmp_path / "in", data), tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()
    with refused(rf"sample '1'.*({message})"):
        adopt(shards(tmp_path, data), tmp_path / "adopted", "some")


HALF = np.zeros((4, 4, 4), np.uint8)
HALF[..., 0], HALF[:, :2, 3], HALF[:, 2, 3] = 200, 255, 128
"""Red pixels: opaque, half transparent in the third column, gone in the fourth."""


def png(pixels, mode=None) -> bytes:
    picture = Image.fromarray(pixels)
    return saved(picture.convert(mode) if mode else picture)


def test_the_background_shows_through():
    fit = Fit(4, 3, (4, 4), background=(0, 0, 255))
    opaque = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    np.testing.assert_array_equal(decode(png(opaque), "a.png", fit), opaque)
    out = decode(png(HALF), "a.png", fit)
    np.testing.assert_array_equal(out[0, 0], [200, 0, 0])
    np.testing.assert_allclose(out[0, 2], [100, 0, 127], atol=1)
    np.testing.assert_array_equal(out[0, 3], [0, 0, 255])


def test_grey_stays_grey_on_grey():
    data = png(np.full((4, 4, 4), [90, 90, 90, 0], np.uint8), "LA")
    fit = fit_like(data, "a.png", None, None, (255, 255, 255))
    assert fit.channels == 1
    np.testing.assert_array_equal(decode(data, "a.png", fit), np.full((4, 4, 1), 255))
    assert fit_like(data, "a.png", None, None, (255, 0, 0)).channels == 3
    with refused("--background: grey images have a grey background"):
        fit_like(data, "a.png", None, 1, (255, 0, 0))


@pytest.mark.parametrize("mode", ["P", "L", "1", "RGB"])
def test_one_transparent_colour(mode):
    picture = Image.new(mode, (4, 4), 0)
    if mode == "P":
        picture.putpalette([7, 8, 9] + [0] * 765)
    data = saved(picture, transparency=(0, 0, 0) if mode == "RGB" else 0)
    out = decode(data, "a.png", Fit(4, 3, (4, 4), background=(1, 2, 3)))
    np.testing.assert_array_equal(out, np.broadcast_to([1, 2, 3], (4, 4, 3)))
    with refused("has transparency"):
        decode(data, "a.png", exactly(4, 3))


def test_the_identity_of_requests_is_what_it_was():
    """Of version 1, written out: a pack that was begun by it must go on."""
    assert repr(exactly(8, 3)) == "Fit(size=8, channels=3, picture=(8, 8), crop=None, filter=<Resampling.LANCZOS: 1>)"


def test_a_folder_of_transparent_pictures(tmp_path):
    folder = image_folder(tmp_path / "in", {f"{i}.png": png(HALF) for i in range(3)})
    description = pack(images(folder, None, 0, "x", None, 3, 10, background=(255, 255, 255)), tmp_path / "out")
    assert description.source == "in, transparency on #ffffff"
    assert (unpacked(tmp_path / "out", "train")[0][:, :, 3] == 255).all()
