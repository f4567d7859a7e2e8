"""Pictures with transparency, on a background."""

import io

import numpy as np
import pytest
from PIL import Image

from fdtrain.data.pack import pack
from fdtrain.data.sources.images import images
from fdtrain.data.sources.picture import Fit, decode, exactly, fit_like
from fdtrain.data.split import Split
from fdtrain.errors import UserError

HALF = np.zeros((4, 4, 4), np.uint8)
HALF[..., 0], HALF[:, :2, 3], HALF[:, 2, 3] = 200, 255, 128
"""Red pixels: opaque, half transparent in the third column, gone in the fourth."""


def png(pixels, mode=None, **options) -> bytes:
    file = io.BytesIO()
    picture = Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(file, "PNG", **options)
    return file.getvalue()


def test_the_background_shows_through():
    out = decode(png(HALF), "a.png", Fit(4, 3, (4, 4), background=(0, 0, 255)))
    np.testing.assert_array_equal(out[0, 0], [200, 0, 0])
    np.testing.assert_allclose(out[0, 2], [100, 0, 127], atol=1)
    np.testing.assert_array_equal(out[0, 3], [0, 0, 255])


def test_grey_stays_grey_on_grey():
    data = png(np.full((4, 4, 4), [90, 90, 90, 0], np.uint8), "LA")
    fit = fit_like(data, "a.png", None, None, (255, 255, 255))
    assert fit.channels == 1
    np.testing.assert_array_equal(decode(data, "a.png", fit), np.full((4, 4, 1), 255))
    assert fit_like(data, "a.png", None, None, (255, 0, 0)).channels == 3
    with pytest.raises(UserError, match="--background: grey images have a grey background"):
        fit_like(data, "a.png", None, 1, (255, 0, 0))


@pytest.mark.parametrize("mode", ["P", "L", "1", "RGB"])
def test_one_transparent_colour(mode):
    picture = Image.new(mode, (4, 4), 0)
    if mode == "P":
        picture.putpalette([7, 8, 9] + [0] * 765)
    file = io.BytesIO()
    picture.save(file, "PNG", transparency=(0, 0, 0) if mode == "RGB" else 0)
    out = decode(file.getvalue(), "a.png", Fit(4, 3, (4, 4), background=(1, 2, 3)))
    np.testing.assert_array_equal(out, np.broadcast_to([1, 2, 3], (4, 4, 3)))
    with pytest.raises(UserError, match="has transparency"):
        decode(file.getvalue(), "a.png", exactly(4, 3))


def test_what_is_opaque_is_not_changed():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    out = decode(png(pixels), "a.png", Fit(4, 3, (4, 4), background=(1, 2, 3)))
    np.testing.assert_array_equal(out, pixels)


def test_the_identity_of_requests_without_a_background_is_what_it_was():
    """Of version 1, written out: a pack that was begun by it must go on."""
    assert repr(exactly(8, 3)) == ("Fit(size=8, channels=3, picture=(8, 8), crop=None, filter=<Resampling.LANCZOS: 1>)")
    assert repr(Fit(8, 1, None, background=(0, 0, 0))).endswith(", background=(0, 0, 0))")


def test_a_folder(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes(png(HALF))
    with pytest.raises(UserError, match="3 images of in cannot be packed"):
        pack(images(folder, None, 0, "x", None, 3, 10), tmp_path / "out")
    # The corrected command, into the same folder.
    description = pack(images(folder, None, 0, "x", None, 3, 10, background=(255, 255, 255)), tmp_path / "out")
    assert description.source == "in, transparency on #ffffff"
    pixels, _ = Split(tmp_path / "out", "train").batch(range(3))
    assert (pixels[:, :, :, 3] == 255).all()
