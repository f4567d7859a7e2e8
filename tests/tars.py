"""Tar headers made field by field, with right sums, as no writer would make them."""

END = bytes(1024)


def header(name=b"a.npy", size=b"00000000003\0", kind=b"0", magic=b"ustar\x0000", prefix=b"") -> bytes:
    """A header with a right sum, whatever its fields."""
    fields = name.ljust(100, b"\0") + b"0000644\0" * 3 + size + b"0" * 11 + b"\0" + b" " * 8 + kind + bytes(100)
    block = (fields + magic.ljust(88, b"\0") + prefix).ljust(512, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def block(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def extended(content: bytes, kind=b"x") -> bytes:
    return header(b"pax", b"%011o\0" % len(content), kind) + block(content)


def record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    length += len(str(length + len(str(length))))
    return b"%d %s=%s\n" % (length, key, value)
