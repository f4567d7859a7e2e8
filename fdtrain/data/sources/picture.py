"""Decodes image files to arrays. The header is checked before any pixel is decoded."""

from dataclasses import dataclass, field, replace

import numpy as np
from PIL import ExifTags, Image, ImageOps

from fdtrain.data.decode import BMP, JPEG, PNG, WEBP, BadSample, Broken, array, opened
from fdtrain.errors import UserError, excerpt

STARTS = {PNG: b"\x89PNG", JPEG: b"\xff\xd8\xff", WEBP: b"RIFF", BMP: b"BM"}
"""The first bytes of each kind of picture."""

CHANNELS = (1, 3)
GREY = ("1", "L", "LA")
"""Pillow's modes of pictures without colour."""

MAX_PIXELS = 1 << 26
"""8192 x 8192. A larger picture is refused, since decoding it could fill the memory."""


Colour = tuple[int, int, int]
"""Red, green and blue from 0 to 255."""


@dataclass(frozen=True)
class Fit:
    """How a picture becomes an image of ``size`` x ``size`` pixels.

    Args:
        size, channels: the shape of the image. Channels are 1 (grey) or 3 (RGB).
        picture: the (width, height) that every picture must have; ``None``: any.
        crop: the side of the square cut from the picture's centre; ``None``: the largest.
        filter: the filter that resizes the square, if it has another size.
        background: what shows through transparent pixels; ``None``: pictures with transparency are refused.
    """

    size: int
    channels: int
    picture: tuple[int, int] | None
    crop: int | None = None
    filter: Image.Resampling = Image.Resampling.LANCZOS
    # A source's description names it, so that it is no part of identities.
    background: Colour | None = field(default=None, repr=False)

    def same(self, pixels: np.ndarray) -> bool:
        """Whether an array ``(H, W, C)`` is an image already."""
        if pixels.shape != (self.size, self.size, self.channels) or pixels.dtype != np.uint8:
            return False
        return not self.crop and self.picture in (None, (self.size, self.size))


def exactly(size: int, channels: int) -> Fit:
    """The fit of pictures that are not changed."""
    return Fit(size, channels, (size, size))


def method(size: int) -> str:
    """What is done to a picture of any size, for descriptions."""
    return f"largest centre square, Lanczos to {size}x{size}"


def fit_like(
    data: bytes | np.ndarray, where: str, resize: int | None, channels: int | None, background: Colour | None = None
) -> Fit:
    """How to fit pictures that are like this one: of its size if no other is asked for, and of its channels. Raises
    UserError: it is not an image, or not square though no resize is asked for; or the background has a colour, but the
    images are to be grey."""
    size, found = upright_shape(data, where)
    grey_background = background is None or len(set(background)) == 1
    if channels == 1 and not grey_background:
        raise UserError("--background: grey images have a grey background, such as white or black. Choose one.")
    channels = channels or (found if grey_background else 3)
    if resize:
        return Fit(resize, channels, picture=None, background=background)
    if size[0] != size[1]:
        raise UserError(f"{where} has {_size(size)} pixels: not square. Ask for a square with --size.")
    return replace(exactly(size[0], channels), background=background)


def upright_shape(data: bytes | np.ndarray, where: str) -> tuple[tuple[int, int], int]:
    """((width, height), channels) of a picture by its header. Raises BadSample: it is not an image."""
    picture = _open(data, where)
    try:
        return _upright_size(picture), 1 if picture.mode in GREY else 3
    except Exception as error:  # As in decode.
        raise _broken(where, error) from error


def decode(data: bytes | np.ndarray, where: str, fit: Fit) -> np.ndarray:
    """An image to ``(size, size, channels)`` uint8, a file turned upright as its EXIF orientation says. ``data`` is a
    file, of numpy or a picture's, or pixels of uint8: ``(H, W)``, ``(H, W, 1 or 3)`` or ``(1 or 3, H, W)``. Raises
    BadSample: not an image of a known format, broken, absurdly large, or not what ``fit`` takes."""
    if isinstance(data, np.ndarray):
        data = channels_last(data)
        if fit.same(data):
            return data
    picture = _open(data, where)
    try:
        size = _upright_size(picture)
        if fit.picture and size != fit.picture:
            raise BadSample(
                f"{where} has {_size(size)} pixels, expected {_size(fit.picture)}. Remove it, or ask for one size with "
                "--size."
            )
        # Decoded now, after the checks on its header.
        ImageOps.exif_transpose(picture, in_place=True)
        picture = _squared(_coloured(picture, where, fit.channels, fit.background), fit)
    except UserError:
        raise
    except Exception as error:  # Pillow's parsers raise all kinds on hostile data.
        raise _broken(where, error) from error
    return np.asarray(picture).reshape(fit.size, fit.size, fit.channels)


def _broken(where: str, error: Exception) -> BadSample:
    return BadSample(f"{where} is a broken image ({error}). Remove it or fetch it again.")


def _open(data: bytes | np.ndarray, where: str) -> Image.Image:
    """Read a file's header alone. Pictures that eight bits a channel or one frame would not represent are refused."""
    try:
        if isinstance(data, bytes) and data.startswith(np.lib.format.MAGIC_PREFIX):
            data = array(data)
        if isinstance(data, np.ndarray):
            return _from_array(channels_last(data))
        kind = next((kind for kind, start in STARTS.items() if data.startswith(start)), None)
        if kind is None:
            raise Broken("not an image (PNG, JPEG, WebP, BMP)")
        return opened(data, kind, _check_pixels)
    except Broken as error:
        raise BadSample(f"{where} is {error}. Convert it, or remove it.") from error


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise Broken(f"an image of {width}x{height} pixels, the limit is {MAX_PIXELS}")


def _from_array(pixels: np.ndarray) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in CHANNELS or not pixels.size:
        raise Broken(
            f"an array of {excerpt(pixels.dtype)} of shape {excerpt(pixels.shape)}; images are uint8, of height x "
            "width (x 1 or 3 channels) or 1 or 3 channels x height x width"
        )
    _check_pixels(pixels.shape[1], pixels.shape[0])
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))


def channels_last(pixels: np.ndarray) -> np.ndarray:
    """``(H, W, C)`` of an image without channels (grey) or with the channels first: a view."""
    if pixels.ndim == 2:
        return pixels[..., None]
    planar = pixels.ndim == 3 and pixels.shape[2] not in CHANNELS and pixels.shape[0] in CHANNELS
    return pixels.transpose(1, 2, 0) if planar else pixels


def _upright_size(picture: Image.Image) -> tuple[int, int]:
    """(width, height) of the picture when it is turned as its EXIF orientation says."""
    turned = picture.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (picture.height, picture.width) if turned else picture.size


def _coloured(picture: Image.Image, where: str, channels: int, background: Colour | None) -> Image.Image:
    """Lossless where possible: grey becomes RGB of equal values, but nothing is turned grey, or made opaque unasked."""
    bands, mode = picture.getbands(), "L" if channels == 1 else "RGB"
    transparent = "A" in bands or "a" in bands or "transparency" in picture.info
    if transparent and background is None:
        raise BadSample(
            f"{where} has transparency. Say with --background what shows through it (for a folder, zip or tar of "
            "images), such as white."
        )
    if picture.mode not in ("1", "L", "P", "RGB", "CMYK", "YCbCr", *(("LA", "PA", "RGBA") if transparent else ())):
        raise BadSample(f"{where} is of mode {picture.mode}, not of 8 bits a channel. Convert it first.")
    if channels == 1 and picture.mode not in GREY:
        raise BadSample(f"{where} has colours, but the data set is grey. For a set with both, ask for --channels 3.")
    if transparent:
        opaque = Image.new("RGBA", picture.size, background)
        picture = Image.alpha_composite(opaque, picture.convert("RGBA"))
        # Of a grey picture on grey the three channels are equal; their weighted mean might round.
        return picture.getchannel("R") if channels == 1 else picture.convert("RGB")
    return picture if picture.mode == mode else picture.convert(mode)


def _squared(picture: Image.Image, fit: Fit) -> Image.Image:
    side = fit.crop or min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    if picture.size != (side, side):
        picture = picture.crop((left, top, left + side, top + side))
    return picture if side == fit.size else picture.resize((fit.size, fit.size), fit.filter)


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
