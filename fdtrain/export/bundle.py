"""Modules of this package as one text that needs no fdtrain: exports carry the code that they were trained with."""

import ast
import importlib.util
from collections.abc import Iterable
from pathlib import Path

SOLVERS = ("fdtrain.diffusion.solvers.stepper", "fdtrain.diffusion.solvers.grids")
"""Of all solvers and grids that need no torch."""


def bundle(modules: Iterable[str]) -> str:
    """The source of modules of fdtrain and of all that they import from it, each after what it needs.

    Names keep their meaning: modules import names from fdtrain, no modules. The text begins with ``from __future__
    import annotations`` and the imports of other packages.

    Raises ValueError: two modules define the same name.
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
        parts = []
        for i, node in enumerate(tree.body):
            start = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
            text = "\n".join(lines[start - 1 : node.end_lineno])
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "fdtrain":
                self.needs.append(node.module or "")
            elif isinstance(node, ast.Import | ast.ImportFrom):
                origin = f"from {node.module} " if isinstance(node, ast.ImportFrom) else ""
                self.imports += [f"{origin}import {ast.unparse(alias)}" for alias in node.names]
            elif i > 0 or ast.get_docstring(tree) is None:
                parts.append(f"\n\n{text}" if text.startswith(("def", "class", "@")) else text)
                self.names += _defined(node)
        self.body = "\n".join(parts)


def _collect(name: str, order: dict[str, _Module]) -> None:
    """Add a module after those that it needs."""
    if name in order:
        return
    module = _Module(name)
    for needed in module.needs:
        _collect(needed, order)
    order[name] = module


def _defined(node: ast.stmt) -> list[str]:
    """The names that a statement at the top of a module defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
