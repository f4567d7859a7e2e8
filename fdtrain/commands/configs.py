"""List the configurations that come with fdtrain, or copy one to edit it.

    fdtrain configs
    fdtrain configs --copy fashion_mnist .
    fdtrain train --config imagenet32 baselines/edm

A name stands for its file wherever a configuration is asked for.
"""

import argparse
import re
import shutil
import textwrap
from pathlib import Path

from fdtrain import shipped
from fdtrain.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--copy", nargs=2, metavar=("NAME", "FOLDER"), help="write a copy of it into the folder")


def run(arguments: argparse.Namespace) -> None:
    if arguments.copy is None:
        known = shipped.names()
        width = max(map(len, known))
        for name, file in known.items():
            print(f"{name:{width}}  {summary(file)}")
        return
    name, folder = arguments.copy
    source, target = shipped.find(name), Path(folder).expanduser()
    target = target / source.name if target.is_dir() else target
    if target.exists():
        raise UserError(f"{target} exists already. Remove it, or give another folder.")
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise UserError(f"cannot write {target} ({error.strerror}).") from error
    print(target)


def summary(file: Path) -> str:
    """The first sentence of a configuration's comment."""
    lines = file.read_text().splitlines()
    comment = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    return textwrap.shorten(re.split(r"\. (?=[A-Z])", comment)[0].rstrip("."), 100, placeholder=" ...")
