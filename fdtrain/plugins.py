"""Code of the user's own: networks, predictors, densities of time, solvers and callbacks (docs/extending.md).

A file is executed where the user names it, by ``--allow-code`` or ``allow_code``, and nowhere else. Configurations
only say which files they need, by name, and what was trained by checksum too; the copies in the folders of runs and
exports are executed when they are named in turn.
"""

import hashlib
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from fdtrain import files
from fdtrain.diffusion.clocks import DENSITIES
from fdtrain.diffusion.predictors import PREDICTORS
from fdtrain.diffusion.solvers import SOLVERS, Solver
from fdtrain.errors import UserError
from fdtrain.networks.model import CODE, CODE_FOLDER, NETWORKS

CALLBACKS: dict[str, Callable[..., Any]] = {}
"""By name, what makes a report of a run under way; training/callbacks.py adds those of the package."""
FAMILIES: dict[str, dict[str, Any]] = {
    "network": NETWORKS,
    "predictor": PREDICTORS,
    "density": DENSITIES,
    "solver": SOLVERS,
    "callback": CALLBACKS,
}
"""What can be registered, and the tables from which all of its kind are chosen by name."""


class Plugin(NamedTuple):
    """A file that was executed, and what it has registered, by family and name."""

    path: Path
    content: bytes
    registered: dict[tuple[str, str], Any]


_plugins: dict[str, Plugin] = {}
"""By the names of their files."""
_registering: dict[tuple[str, str], Any] | None = None
"""What the file that is being executed has registered so far."""


def _decorator(family: str, name: str, wrapped: Callable[[Any], Any] = lambda value: value) -> Callable[[Any], Any]:
    """Registers what it decorates, unless the file is imported otherwise, by its own tests for example."""

    def register(value: Any) -> Any:
        if _registering is not None:
            _registering[family, name] = wrapped(value)
        return value

    return register


network = partial(_decorator, "network")
"""``@network("mine")`` of a class that is made with :data:`fdtrain.networks.model.ARGUMENTS` and options of its own."""
predictor = partial(_decorator, "predictor")
"""Of a function from the configuration's scale to a :class:`fdtrain.diffusion.predictors.Predictor`."""
density = partial(_decorator, "density")
"""Of a function from the configuration's scale to a :class:`fdtrain.diffusion.clocks.Clock`."""
callback = partial(_decorator, "callback")
"""Of a function from a :class:`fdtrain.training.callbacks.Watched` and options to ``report(step, model)``."""


def solver(name: str, **about: Any) -> Callable[[Any], Any]:
    """Of a function from falling times to their steps; ``about`` are the other fields of :class:`Solver`."""
    return _decorator("solver", name, lambda steps: Solver(steps, **about))


def execute(paths: Sequence[str | Path]) -> None:
    """Execute files that the user has named, and register what is in them: once, and again where one was changed.

    Raises:
        UserError: one cannot be read or executed, registers nothing, or a name that is another's.
    """
    names = [Path(path).name for path in paths]
    for path in map(Path, paths):
        if names.count(path.name) > 1 or not re.fullmatch(files.NAME, path.name):
            raise UserError(f"--allow-code {path}: rename it: names must differ, and be of letters, digits, . - and _.")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"--allow-code: cannot read {path} ({error.strerror}).") from error
        sha256 = hashlib.sha256(content).hexdigest()
        if CODE.get(path.name) != sha256:
            _register(Plugin(path, content, _execute(path, content)))
            CODE[path.name] = sha256


def _execute(path: Path, content: bytes) -> dict[tuple[str, str], Any]:
    """What the file registers."""
    global _registering
    module = ModuleType(f"fdtrain_plugin_{path.stem}")
    # Dataclasses look for their module there.
    sys.modules[module.__name__] = module
    _registering = registered = {}
    try:
        # These bytes, of which there is the checksum: an import might find others in a cache.
        exec(compile(content, str(path), "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        raise UserError(f"{path}, line {line}, cannot be executed ({type(error).__name__}: {error}).") from error
    finally:
        _registering = None
    if not registered:
        raise UserError(f'{path} registers nothing: it has no decorator of fdtrain.plugins, such as @network("mine").')
    return registered


def _register(plugin: Plugin) -> None:
    """In place of what a file of this name has registered before."""
    before = _plugins[plugin.path.name].registered if plugin.path.name in _plugins else {}
    for family, name in plugin.registered:
        if name in FAMILIES[family] and (family, name) not in before:
            whose = f"of {file}" if (file := file_of(family, name)) else "fdtrain's own"
            raise UserError(f"{plugin.path}: the {family} {name!r} is {whose} already. Choose another name.")
    for family, name in before:
        del FAMILIES[family][name]
    for (family, name), value in plugin.registered.items():
        FAMILIES[family][name] = value
    _plugins[plugin.path.name] = plugin


def as_options() -> list[str]:
    """For another process, which is to execute the same files."""
    return [word for plugin in _plugins.values() for word in ("--allow-code", str(plugin.path))]


def file_of(family: str, name: str) -> str | None:
    """The file that has registered a name; None of the package's own."""
    return next((file for file, plugin in _plugins.items() if (family, name) in plugin.registered), None)


def code_of(*used: tuple[str, str]) -> dict[str, str]:
    """The files, with their checksums, that what is used is in, by family and name."""
    found = {file_of(family, name) for family, name in used}
    return {file: CODE[file] for file in sorted(filter(None, found))}


def save_copies(names: Iterable[str], folder: Path) -> None:
    """Copies of executed files in the folder of a run or an export. Raises OSError."""
    for name in names:
        write = partial(Path.write_bytes, data=_plugins[name].content)
        files.write_atomically(folder / CODE_FOLDER / name, write)
