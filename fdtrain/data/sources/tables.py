"""Tables in files, read a group of rows at a time: parquet, and the Arrow streams of ``save_to_disk``."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fdtrain.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.ipc

MAX_GROUP = 1 << 32
"""The most bytes of a group of rows, which is read at once."""


class TableFile(Protocol):
    """An open file."""

    schema: "pa.Schema"
    groups: list[int]
    """The number of rows of each group."""

    def read(self, group: int, columns: list[str]) -> "pa.Table":
        """Some columns of a group. Groups are read fastest in order."""
        ...

    def batches(self, columns: list[str], rows: int = 1 << 16) -> Iterator["pa.RecordBatch"]:
        """Some columns of all rows in order, about ``rows`` at a time."""
        ...

    def has_nulls(self, group: int, column: str) -> bool:
        """Whether a value of the column, or within its values, may be null in a group. False is certain."""
        ...


def opened(path: Path) -> TableFile:
    """Open a file by its extension, ``.parquet`` or ``.arrow``.

    Raises:
        UserError: pyarrow is missing, or it is no such file.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise UserError("parquet and Arrow need pyarrow. Install it: pip install 'fdtrain[parquet]'.") from error
    if path.suffix == ".arrow":
        with guarded(path, "is not a stream of Arrow, or cut short"):
            return _ArrowStream(path)
    with guarded(path, "is not a parquet file, or cut short"):
        return _ParquetFile(path)


@contextmanager
def guarded(path: Path, problem: str = "is damaged or lacks a column") -> Iterator[None]:
    """Turn the errors of pyarrow on damaged files into one line."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, KeyError, ValueError, MemoryError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} {problem} ({reason}). Fetch it again.") from error


class _ParquetFile:
    """The groups are its row groups."""

    def __init__(self, path: Path):
        import pyarrow.parquet as pq

        self._path, self._file = path, pq.ParquetFile(path)
        self.schema = self._file.schema_arrow
        about = self._file.metadata
        self.groups: list[int] = [about.row_group(i).num_rows for i in range(about.num_row_groups)]

    def read(self, group: int, columns: list[str]) -> "pa.Table":
        if self._file.metadata.row_group(group).total_byte_size > MAX_GROUP:
            raise UserError(f"{self._path}: row group {group} is absurdly large. Write it in smaller ones.")
        return self._file.read_row_group(group, columns=columns)

    def batches(self, columns: list[str], rows: int = 1 << 16) -> "Iterator[pa.RecordBatch]":
        return self._file.iter_batches(batch_size=rows, columns=columns)

    def has_nulls(self, group: int, column: str) -> bool:
        about = self._file.metadata.row_group(group)
        leaves = [about.column(i) for i in range(about.num_columns)]
        counts = [
            leaf.statistics.null_count if leaf.statistics and leaf.statistics.has_null_count else None
            for leaf in leaves
            if leaf.path_in_schema.partition(".")[0] == column
        ]
        return any(count != 0 for count in counts)


class _ArrowStream:
    """The groups are its record batches.

    They are counted through a memory map, which reads the batches' headers alone. They are read without one: a file
    that shrinks meanwhile is then an error, which a map would answer with a signal.
    """

    def __init__(self, path: Path):
        import pyarrow as pa

        self._path = path
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
            self.schema = stream.schema
            self.groups: list[int] = [batch.num_rows for batch in stream]
        self._stream: pyarrow.ipc.RecordBatchStreamReader | None = None
        self._columns: list[str] = []
        self._next = 0

    def read(self, group: int, columns: list[str]) -> "pa.Table":
        import pyarrow as pa

        if self._stream is None or columns != self._columns or group < self._next:
            fields = [self.schema.get_field_index(column) for column in columns]
            options = pa.ipc.IpcReadOptions(included_fields=fields)
            self._stream = pa.ipc.open_stream(pa.OSFile(str(self._path)), options=options)
            self._columns, self._next = columns, 0
        while True:
            batch = self._stream.read_next_batch()
            self._next += 1
            if self._next > group:
                table = pa.Table.from_batches([batch])
                # Offsets that point elsewhere would be followed.
                table.validate(full=True)
                return table

    def batches(self, columns: list[str], rows: int = 1 << 16) -> "Iterator[pa.RecordBatch]":
        for group in range(len(self.groups)):
            yield from self.read(group, columns).to_batches(rows)

    def has_nulls(self, group: int, column: str) -> bool:
        return True
