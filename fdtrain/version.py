"""What ``--version`` prints, of main.py and of every tool."""

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("fdtrain", "torch", "deepspeed")


class ShowVersion(argparse.Action):
    """Prints the versions of fdtrain and of what it runs on, looked up only when they are asked for."""

    def __init__(self, option_strings: list[str], dest: str, **_):
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help="print versions, and end")

    def __call__(self, parser: argparse.ArgumentParser, *_):
        found = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
        print(f"{found}, Python {platform.python_version()}")
        parser.exit()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
