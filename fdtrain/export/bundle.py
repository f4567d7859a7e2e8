"""Modules of this package as one text that needs no fdtrain: exports carry the code that they were trained with."""

import ast
import importlib.util
from collections.abc import Iterable
from pathlib import Path


def bundle(modules: Iterable[str]) -> str:
    """The source of modules of fdtrain and of all that they import from it, each after what it needs.

    Names keep their meaning: imports from fdtrain become the names themselves, or a namespace for an imported module.
    The text begins with ``from __future__ import annotations`` and the imports of other packages.

    Raises:
        ValueError: two modules define the same name.
    """
    order: dict[str, _Module] = {}
    for name in modules:
        _collect(name, order)
    owners: dict[str, str] = {}
    for name, module in order.items():
        for defined in module.names:
            if owners.setdefault(defined, name) != name:
                raise ValueError(f"{owners[defined]} and {name} both define {defined!r}")
    imports = sorted({line for module in order.values() for line in module.imports})
    return "\n".join(["from __future__ import annotations\n", *imports, *(module.body for module in order.values())])


class _Module:
    """The parts of a module: imports from elsewhere, the modules that it needs, the names that it defines, the rest."""

    def __init__(self, name: str):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        source = Path(spec.origin).read_text(encoding="utf-8")
        tree, lines = ast.parse(source), source.splitlines()
        self.imports: list[str] = []
        self.needs: list[str] = []
        self.names: list[str] = []
        self.body = ""
        parts, namespaces = [], []
        for i, node in enumerate(tree.body):
            start = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
            text = "\n".join(lines[start - 1 : node.end_lineno])
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "fdtrain":
                for alias in node.names:
                    if importlib.util.find_spec(node.module or "") and _is_module(f"{node.module}.{alias.name}"):
                        self.needs.append(f"{node.module}.{alias.name}")
                        namespaces.append(self.needs[-1])
                    else:
                        self.needs.append(node.module or "")
            elif isinstance(node, ast.Import | ast.ImportFrom):
                origin = f"from {node.module} " if isinstance(node, ast.ImportFrom) else ""
                self.imports += [f"{origin}import {ast.unparse(alias)}" for alias in node.names]
            elif i > 0 or ast.get_docstring(tree) is None:
                parts.append(text)
                self.names += _defined(node)
        separated = ["\n\n" + part if part.lstrip().startswith(("def", "class", "@")) else part for part in parts]
        self.body = "\n".join([*(_namespace(module) for module in namespaces), *separated])


def _collect(name: str, order: dict[str, _Module]) -> None:
    """Add a module after those that it needs."""
    if name in order:
        return
    module = _Module(name)
    for needed in module.needs:
        _collect(needed, order)
    order[name] = module


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _defined(node: ast.stmt) -> list[str]:
    """The names that a statement at the top of a module defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]


def _namespace(module: str) -> str:
    """A line that makes ``module.name`` mean what it does where the module is imported."""
    names = ", ".join(f"{name}={name}" for name in dict.fromkeys(_Module(module).names))
    return f"{module.rpartition('.')[2]} = __import__('types').SimpleNamespace({names})"
