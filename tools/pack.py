"""Pack a data set into WebDataset shards: ``python tools/pack.py digits data/digits``."""

import argparse
import sys

from fdtrain.data.pack import pack_digits
from fdtrain.errors import exit_code

SOURCES = {"digits": pack_digits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", choices=SOURCES, help="digits: scikit-learn's 8x8 handwritten digits")
    parser.add_argument("folder", help="where the shards and dataset.json go")
    arguments = parser.parse_args()
    description = SOURCES[arguments.source](arguments.folder)
    for split in description.splits:
        print(
            f"{arguments.folder}: {split}: {description.images(split)} images, {len(description.splits[split])} shards"
        )


if __name__ == "__main__":
    sys.exit(exit_code(main))
