"""The configurations that come with fdtrain, by name: ``digits``, ``baselines/edm``, ``comparisons/digits``."""

import difflib
from pathlib import Path

from fdtrain.errors import UserError, excerpt

PACKAGE = Path(__file__).parent
# Of a checkout they stand beside the package, so that they can be read and edited; of an installation within it.
FOLDER = PACKAGE.parent / "configs" if (PACKAGE.parent / "setup.py").exists() else PACKAGE / "configs"


def names() -> dict[str, Path]:
    """Every configuration that comes with fdtrain, its file by its name."""
    return {str(file.relative_to(FOLDER).with_suffix("")): file for file in sorted(FOLDER.rglob("*.yaml"))}


def find(given: str | Path, unreadable: str = "cannot read") -> Path:
    """The file of that path; or, where there is none, what comes with fdtrain by that name or as ``configs/NAME.yaml``.

    Raises:
        UserError: there is neither; the message begins with ``unreadable``.
    """
    path = Path(given)
    try:
        path.stat()
        return path
    except (FileNotFoundError, NotADirectoryError):
        known, name = names(), str(given).removeprefix("configs/").removesuffix(".yaml")
    except OSError:
        # There, or no possible name: whoever reads it says why it cannot be.
        return path
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise UserError(f"{unreadable} {excerpt(given)} (no such file or name): {hint}'fdtrain configs' lists the names.")
