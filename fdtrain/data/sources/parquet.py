"""A folder of parquet files as the Hugging Face hub serves them."""

from pathlib import Path

from fdtrain.data.sources import hub
from fdtrain.data.sources.archive import members
from fdtrain.data.sources.rows import Choice, table_source
from fdtrain.data.sources.source import Source
from fdtrain.errors import UserError


def parquet(folder: Path, name: str, choice: Choice) -> Source:
    """Every split of a configuration.

    Args:
        folder: with files such as ``data/train-00000-of-00002.parquet`` or ``test/0000.parquet``.
        name: the name of the data set.

    Raises:
        UserError: no parquet files, some that are missing or of different kinds; as :func:`table_source`.
    """
    files = [file for file in members(folder) if file.name.endswith(".parquet")] if folder.is_dir() else []
    if not files:
        raise UserError(f"{folder} is no folder with .parquet files. Download the data set's files first.")
    splits = hub.splits(files, choice.configuration, folder)
    return table_source(splits, name, f"{folder.name} (parquet", folder, choice)
