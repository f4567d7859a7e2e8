"""The same bytes as others read them: tarfile, zipfile, Pillow, json."""

import io
import json
import struct
import tarfile
import zipfile
import zlib

import numpy as np
from children import digest
from PIL import Image

IMAGES = ("npy", "png", "jpg", "jpeg", "webp")


def shard(path: str) -> list:
    """``[digest, label]`` of every sample (None: unreadable), or 'ambiguous' where two share a key."""
    samples: list[tuple[str, dict]] = []
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            folder, slash, base = member.name.rpartition("/")
            key, dot, extension = base.partition(".")
            if not member.isreg() or member.issparse() or not key or not dot:
                continue
            if not samples or samples[-1][0] != folder + slash + key:
                samples.append((folder + slash + key, {}))
            if extension.lower() in (*IMAGES, "cls", "json"):
                if extension.lower() in samples[-1][1]:
                    return ["ambiguous"]
                samples[-1][1][extension.lower()] = tar.extractfile(member).read()
    return [_sample(members) for _, members in samples]


def _sample(members: dict[str, bytes]) -> list | str | None:
    found = [extension for extension in IMAGES if extension in members]
    if len(found) > 1:
        return "ambiguous"
    try:
        data = io.BytesIO(members[found[0]])
        pixels = np.load(data, allow_pickle=False) if found == ["npy"] else np.asarray(Image.open(data))
        if "cls" in members:
            label = int(members["cls"])
        else:
            content = json.loads(members.get("json", b"{}"))
            label = int(content.get("label", -1)) if isinstance(content, dict) else -1
        return [digest(pixels), label]
    except Exception:
        return None


def archive(path: str) -> list:
    """``[digest, folder]`` of every image that can be read, by name."""
    files = {}
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                data = _tried(lambda info=info: archive.read(info)) or _tried(lambda info=info: _proved(path, info))
                files.setdefault(info.filename, []).append(data)
    else:
        with tarfile.open(path) as archive:
            for info in archive:
                if info.isreg():
                    files.setdefault(info.name, []).append(_tried(lambda info=info: archive.extractfile(info).read()))
    return [
        [name, [data and _tried(lambda data=data: _pixels(data)) for data in found]] for name, found in files.items()
    ]


def _proved(path: str, info: zipfile.ZipInfo) -> bytes | None:
    """What a checksum proves of a file of a zip, where zipfile refuses a header that contradicts the directory."""
    with open(path, "rb") as file:
        file.seek(info.header_offset + 26)
        file.seek(sum(struct.unpack("<HH", file.read(4))), io.SEEK_CUR)
        data = file.read(info.compress_size)
    if info.compress_type == zipfile.ZIP_DEFLATED:
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data)
    return data if (len(data), zlib.crc32(data)) == (info.file_size, info.CRC) else None


def _pixels(data: bytes) -> str:
    return digest(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def _tried(read):
    try:
        return read()
    except Exception:
        return None


def spin() -> None:
    while True:
        continue


TARGETS = (shard, archive, spin)
REFUSALS = Exception
