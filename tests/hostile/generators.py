"""Strategies: right shards, tars, zips, tables, JSON and HTTP answers, and ways to spoil them."""

import copy
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from conftest import SMALL
from hypothesis import strategies as st
from packed import npy, npy_header, picture, raw_png, tar_bytes, zip_bytes
from tars import extended, header, record

SIZES = (0, 1, 511, 2**31, 2**33, 2**62, 2**63, 2**64, 2**80)
TEXTS = ("", "a\0b", "\x1b[2J\n", "../../etc/passwd", "/etc/passwd", "\u202e", "$HOME", "~")
TEXTS += ("x" * 300, "x" * 100_000, "ü" * 200)


class Mark:
    """Leaves a mark if it is ever unpickled."""

    def __reduce__(self):
        return os.system, ("touch marked",)


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)


BOMB = zlib.compress(bytes(50_000_000), 9)
OBJECTS = io.BytesIO()
np.save(OBJECTS, np.array([Mark()], dtype=object), allow_pickle=True)
ROWS = (b"IDAT", zlib.compress(bytes(52)))
"""Of a picture of 4 x 4 pixels."""
HEADER = b"{'descr': '|%b', 'fortran_order': %b, 'shape': (%b)}\n"
PICTURES = [
    b"",
    pickle.dumps(Mark()),
    OBJECTS.getvalue(),
    raw_png(60000, 60000, (b"IDAT", BOMB)),
    raw_png(2**31 - 1, 2**31 - 1, (b"IDAT", BOMB)),
    raw_png(4, 4, (b"IDAT", BOMB)),
    raw_png(4, 4, (b"zTXt", b"a\0\0" + BOMB), ROWS),
    raw_png(4, 4, (b"iCCP", b"a\0\0" + BOMB), ROWS),
    raw_png(4, 4, ROWS)[:33] + struct.pack(">I", 2**31) + b"IDAT",
    npy_header(HEADER % (b"u1", b"False", b"99999999, 9999, 3")),
    npy_header(HEADER % (b"O", b"False", b"1,"), pickle.dumps(Mark())),
    npy_header(HEADER % (b"u1", b"False", b"4, 4, -3"), bytes(48)),
    npy_header(HEADER % (b"u1", b"True", b"4, 4, 3"), bytes(48)),
    npy_header(b"__import__('os').system('touch marked')\n"),
    npy_header(b"(" * 3000),
    b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"{}",
    b"\x93NUMPY\x03\x00" + struct.pack("<I", 4) + b"{}  ",
]
LABELS = [b"", b"-1", b"-2", b"1_0", b" 3 ", b"+3", b"9" * 5000, b"0x3", b"3.0", b"\xd9\xa3", b"nan", b"\0", b"11"]
JSON_LABELS = [b'{"label": %b}' % value for value in b'3 true 1e400 NaN "3" 3,"label":4'.split()]
JSON_LABELS += [b'{"label": ' + b"9" * 5000 + b"}", b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe{", b"3", b"{}"]


@st.composite
def members(draw) -> list[tuple[str, bytes]]:
    """Of a shard: samples, most of them right."""
    found = []
    for number in range(draw(st.integers(1, 4))):
        keys = [f"{number:06d}", f"d/{number}", "k" * 120 + str(number), "same", f"ü{number}", f"{number}/a"]
        key = draw(st.sampled_from(keys))
        pixels = image(draw(st.integers(0, 5)))
        extension = draw(st.sampled_from(["npy", "png", "npy", "png", "jpg", "NPY", "seg.png", "txt"]))
        right = {"npy": npy, "png": picture, "jpg": lambda p: picture(p, "jpeg")}.get(extension.lower(), npy)(pixels)
        sample = [(f"{key}.{extension}", draw(st.just(right) | st.just(right) | st.sampled_from(PICTURES)))]
        if draw(st.booleans()):
            sample.append((f"{key}.cls", draw(st.just(b"%d" % number) | st.sampled_from(LABELS))))
        if draw(st.integers(0, 3)) == 0:
            sample.append((f"{key}.json", draw(st.sampled_from(JSON_LABELS))))
        if draw(st.integers(0, 3)) == 0:
            sample.append((f"{key}.{draw(st.sampled_from(['pyd', 'pickle', 'pth']))}", pickle.dumps(Mark())))
        if draw(st.integers(0, 9)) == 0:
            sample.append(sample[0])
        found += draw(st.permutations(sample))
    return found


NUMBERS = [b"-1", b"-1536", b"0", b"3", b"1_0", b"9" * 5000, str(2**80).encode()]
VALUES = st.sampled_from([*NUMBERS, b"", b"a\0.npy", b"same.npy", b"b.npy/", b"\xff", b"x" * 70_000])
KEYS = st.sampled_from(b"size path comment GNU.sparse.major GNU.sparse.size hdrcharset".split())
BROKEN = [b"1" * 30_000, b"0 a=b\n", b"99 a=b\n", b"-5 a=b\n", b"5 a=", b"6  a=b\n"]
RECORDS = st.builds(record, KEYS, VALUES) | st.sampled_from(BROKEN)
EXTENSIONS = st.builds(
    lambda records, kind, copies: extended(b"".join(records), kind) * copies,
    st.lists(RECORDS, max_size=3),
    st.sampled_from([b"x", b"g", b"X", b"L", b"K"]),
    st.sampled_from([1, 1, 1, 2, 1500]),
)
TEXT_SIZES = [b"-0000000001\0", b"00000000009\0", b"0o000000001\0", b"           1", b"77777777777\0"]
FIELDS = {
    "size": st.sampled_from([b"\x80" + n.to_bytes(11, "big") for n in SIZES] + [b"\xff" * 12, bytes(12), *TEXT_SIZES]),
    "kind": st.sampled_from([bytes([k]) for k in b"\x001234567DKLMNSVXgx?"]),
    "magic": st.sampled_from([b"", b"ustar  \0", b"ustar\x0000", b"garbage"]),
    "name": st.sampled_from([b"", b"a.npy", b"a.npy/", b"000000.cls", b"\xff" * 100, b"a\0b.npy", b"../x.npy"]),
    "prefix": st.sampled_from([b"", b"p", b"p/", b"\0p"]),
}
PLACES = {"size": (124, 12), "kind": (156, 1), "magic": (257, 8), "name": (0, 100), "prefix": (345, 155)}
HEADERS = st.builds(lambda fields: header(**fields), st.fixed_dictionaries({}, optional=FIELDS))


@st.composite
def spoiled(draw, data: bytes, blocks: int = 512) -> bytes:
    """Cut, changed, with pieces repeated or taken away; in a tar, along its blocks, with headers of all kinds."""
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        edge = at // blocks * blocks
        of_tars = ["header", "extension", "field"] * 2 if blocks > 1 else []
        kind = draw(st.sampled_from(["cut", "flip", "repeat", "take", "zero", "noise", *of_tars]))
        if kind == "cut":
            data = data[:at]
        elif kind == "flip":
            data = data[:at] + bytes([data[at] ^ (1 << draw(st.integers(0, 7)))]) + data[at + 1 :] if data else data
        elif kind == "repeat":
            data = data[:edge] + data[edge : edge + blocks] * 2 + data[edge + blocks :]
        elif kind == "take":
            data = data[:edge] + data[edge + blocks :]
        elif kind == "zero":
            data = data[:edge] + bytes(blocks) + data[edge + blocks :]
        elif kind == "noise":
            data = data[:at] + draw(st.binary(min_size=1, max_size=16)) + data[at + 16 :]
        elif kind == "header":
            data = data[:edge] + draw(HEADERS) + data[edge:]
        elif kind == "extension":
            data = data[:edge] + draw(EXTENSIONS) + data[edge:]
        else:
            data = _changed_field(draw, data)
    return data


def _changed_field(draw, data: bytes) -> bytes:
    """One field of one header, its sum made right again."""
    places = [at for at in range(0, len(data) - 511, 512) if data[at + 257 : at + 262] == b"ustar"]
    if not places:
        return data
    at = draw(st.sampled_from(places))
    begin, length = PLACES[field := draw(st.sampled_from(list(FIELDS)))]
    block = bytearray(data[at : at + 512])
    block[begin : begin + length] = draw(FIELDS[field]).ljust(length, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return data[:at] + bytes(block) + data[at + 512 :]


KINDS = st.sampled_from(["png", "jpeg", "webp", "bmp"])
RIGHT = st.builds(lambda seed, kind: picture(image(seed), kind), st.integers(0, 5), KINDS)


def pictures() -> st.SearchStrategy[list[tuple[str, bytes]]]:
    """Named pictures in folders, most of them right; a file of labels now and then."""
    names = ["a/0.png", "a/1.png", "b/0.png", "b/1.png", "c/2.png", "b/../a/0.png", "/a/0.png", "../0.png", "a/x.jpg"]
    name = st.sampled_from(names)
    pictures = RIGHT | RIGHT | RIGHT | st.sampled_from(PICTURES)
    files = st.lists(st.tuples(name, pictures), min_size=1, max_size=5)
    values = [b'[["a/0.png", %b]]' % number for number in (b"0", b"-1", b"1e400", b"%d" % 2**31, b"9" * 5000)]
    values += [b'{"a": NaN}', b"5", b"[5]", b"[[[], 0]]"]
    labels = st.none() | st.sampled_from([*(b'{"labels": %b}' % value for value in values), b"[" * 100_000])
    return st.builds(lambda f, l: f + ([("dataset.json", l)] if l else []), files, labels)


@st.composite
def tars(draw) -> bytes:
    files = draw(pictures())
    mode = draw(st.sampled_from(["w", "w", "w:gz"]))
    data = tar_bytes(files, draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])), mode)
    return draw(spoiled(data, 512 if mode == "w" else 1))


@st.composite
def zips(draw) -> bytes:
    method = draw(st.sampled_from([zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_LZMA]))
    data = zip_bytes(draw(pictures()), method)
    directory = data.find(b"PK\1\2")
    if draw(st.booleans()):
        # A number of the directory: sizes, lengths, the local header's place, flags, method.
        at = directory + draw(st.sampled_from([8, 10, 16, 20, 24, 28, 30, 32, 38, 42]))
        number = draw(st.sampled_from([0, 1, 2**16 - 1, 2**31 - 1, 2**32 - 1]))
        data = data[:at] + struct.pack("<I", number) + data[at + 4 :]
    if draw(st.integers(0, 3)) == 0:
        # A size of 64 bits in an extra field.
        name = int.from_bytes(data[directory + 28 : directory + 30], "little")
        sizes = draw(st.sampled_from([2**62, 2**64 - 1])), draw(st.sampled_from([60, 2**62]))
        extra = struct.pack("<HHQQ", 1, 16, *sizes)
        entry = bytearray(data[directory : directory + 46 + name])
        entry[20:28], entry[30:32] = b"\xff" * 8, struct.pack("<H", len(extra))
        data = data[:directory] + bytes(entry) + extra + data[directory + 46 + name :]
    return draw(spoiled(data, 1))


def features(names) -> bytes:
    return json.dumps({"info": {"features": {"label": {"_type": "ClassLabel", "names": names}}}}).encode()


NAMES = [["a", "b", "c"], "abc", {"0": "a"}, [1, None, []], ["x" * 10_000], [], None]
METADATA = st.sampled_from([None, b"", b"[" * 100_000, b"5", b'{"info": 5}', *map(features, NAMES)])
STATE = {"_data_files": [{"filename": "a.arrow"}], "_fingerprint": "0", "_split": "train", "_format_type": None}
STATE |= {"_format_columns": None, "_format_kwargs": {}, "_output_all_columns": False}


@st.composite
def tables(draw) -> dict[str, bytes]:
    """A parquet file, or what save_to_disk writes of one split; one file is spoiled."""
    count = draw(st.integers(1, 4))
    pictures = RIGHT | RIGHT | RIGHT | st.sampled_from([*PICTURES, None])
    columns = {"image": [{"bytes": draw(pictures)} for _ in range(count)]}
    labels = draw(st.sampled_from(["int", "int", "none", "text", "float", "null", "huge"]))
    if labels != "none":
        value = {"int": 1, "text": "b", "float": 1.5, "null": None, "huge": 2**62}[labels]
        columns["label"] = [value if i % 2 == 0 else {"text": "a"}.get(labels, 0) for i in range(count)]
    metadata = draw(METADATA)
    table, file = pa.table(columns).replace_schema_metadata(metadata and {b"huggingface": metadata}), io.BytesIO()
    if draw(st.booleans()):
        pq.write_table(table, file, row_group_size=draw(st.sampled_from([1, 2, 100])))
        files = {"train-00000-of-00001.parquet": file.getvalue()}
    else:
        with pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
        files = {"a.arrow": file.getvalue(), "state.json": json.dumps(STATE).encode(), "dataset_info.json": b"{}"}
    name = draw(st.sampled_from(list(files)))
    return files | {name: draw(spoiled(files[name], 1))}


ROW = {"data": image(0).transpose(2, 0, 1).reshape(1, -1), "labels": np.ones(1, np.int64)}
PICKLES = [pickle.dumps(ROW, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
NPZ = zip_bytes((f"{key}.npy", npy(value)) for key, value in ROW.items())

NASTY = st.one_of(
    st.sampled_from([None, True, [], {}, "", -1, 0, 1e308, float("nan"), float("inf"), -(2**80), [[]], {"a": {}}]),
    st.sampled_from([*SIZES, ["x"] * 1000, [0] * 100_000, {str(i): i for i in range(2000)}]),
    st.sampled_from(TEXTS),
)


def places(content, here=()) -> list[tuple]:
    """Of every value in nested dicts and lists."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [here] + [place for key, value in items for place in places(value, (*here, key))]


@st.composite
def changed(draw, content: dict, write: Callable[[dict], str]) -> bytes:
    """The text of nested dicts and lists, values and keys replaced, added, taken away, and then spoiled."""
    content = json.loads(json.dumps(content))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.sampled_from(places(content)))
        if not place:
            content[draw(st.sampled_from(TEXTS))] = copy.deepcopy(draw(NASTY))
            continue
        *path, last = place
        parent = content
        for key in path:
            parent = parent[key]
        kind = draw(st.sampled_from(["replace", "replace", "take", "rename"]))
        if kind == "replace" or (kind == "rename" and isinstance(parent, list)):
            parent[last] = copy.deepcopy(draw(NASTY))
        elif kind == "take":
            del parent[last]
        else:
            parent[draw(st.sampled_from(TEXTS))] = parent.pop(last)
    text = write(content).encode()
    return draw(spoiled(text, 1)) if len(text) < 10_000 else text


def named(name: str, content: st.SearchStrategy[bytes]) -> st.SearchStrategy[dict[str, bytes]]:
    return content.map(lambda data: {name: data})


FILES = [
    ("single", named("a", RIGHT.flatmap(lambda data: spoiled(data, 1)))),
    ("table", tables()),
    ("batch", named("a", st.sampled_from(PICKLES).flatmap(lambda data: spoiled(data, 1)))),
    ("batch", named("a.npz", spoiled(NPZ, 1))),
    ("configuration", named("a.yaml", changed(SMALL | {"data": {"path": "x"}}, yaml.safe_dump))),
]
"""Files of a folder, and what reads them."""


LONG_JSON = [b"[" * 1_000_000, b'{"a":' * 200_000, b"9" * 100_000, b"[" + b"{}," * 1_000_000 + b"{}]"]
LONG_JSON += [b'{"version": 1' + b"0" * 5000 + b"}", b'"' + b"\\ud800" * 100 + b'"']
JSON_TEXTS = st.sampled_from([*LONG_JSON, b'{"version": 1, "version": 1}', b"1e999999", b"\xff\xfe", b"\0", b""])


WHITE = [b" ", b"\t", b"\r", b"\n", b"\r\n", b"\r\n\r\n"]
PIECES = st.sampled_from(
    [*WHITE, b"0\r\n\r\n", b"f" * 18 + b"\r\n", b"-1", b"\0", b"\x1b[2J", b"\xff" * 10, b"SECRET", b"x" * 20_000]
)
HEADER_LINES = st.sampled_from(
    [b"Transfer-Encoding: " + how for how in (b"chunked", b"x")]
    + [b"Content-Encoding: " + how for how in (b"gzip", b"br", b"x")]
    + [b"Content-Length: " + n for n in (*(b"%d" % n for n in (0, 1, 10, 2**31, 2**62, 2**80)), b"-1", b"SECRET")]
    + [b"Connection: keep-alive", b"Set-Cookie: SECRET=" + b"x" * 5000, b"X\0: SECRET"]
    + [b"Location: " + to for to in b"/dataset.json file:///etc/passwd http://[ // ftp://a/b http://SECRET:0/".split()]
)
OTHER_STATUSES = b"204 No,206 Part,301 SECRET,302 F,307 T,308 P,404 No,500 SECRET,999 X,SECRET".split(b",")


@st.composite
def answers(draw, body: bytes) -> bytes:
    """To one request: right, or of another status, with other headers, misframed, cut."""
    status = draw(st.sampled_from([b"200 OK"] * 4 + OTHER_STATUSES))
    lines = draw(st.lists(HEADER_LINES, max_size=2))
    if draw(st.booleans()):
        lines.insert(0, b"Content-Length: %d" % len(body))
    data = b"\r\n".join([b"HTTP/1.1 " + status, *lines, b"", body])
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(PIECES) + data[at + draw(st.sampled_from([0, 1, 10])) :]
    return data[: draw(st.sampled_from([len(data), len(data), len(data) - 1, len(data) // 2]))]
