"""Code of fdtrain that works without fdtrain."""

import ast
import subprocess
import sys

import pytest

from fdtrain.export.bundle import SOLVERS, bundle
from fdtrain.networks.model import NETWORKS


@pytest.mark.parametrize("network", NETWORKS)
def test_networks(network):
    code = bundle(["fdtrain.diffusion.predictors", NETWORKS[network].__module__])
    assert imported(code) <= {"torch", *sys.stdlib_module_names}
    compile(code, network, "exec")


def test_solvers_need_numpy_alone():
    code = bundle(SOLVERS)
    assert imported(code) <= {"numpy", *sys.stdlib_module_names}
    alone = "import sys; sys.modules.update(dict.fromkeys(['torch', 'fdtrain']))\n"
    use = "\nprint(Stepper('unipc2', time_grid(GRID, 3)).times[0], dpmpp2m([1.0, 0.0])[0].t)"
    code = code.replace("from __future__ import annotations\n", f"from __future__ import annotations\n{alone}")
    done = subprocess.run([sys.executable, "-c", code + use], capture_output=True, text=True)
    assert done.stdout == "1.0 0.0\n", done.stderr


def imported(code: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


def test_names_that_two_modules_define():
    """alpha of times that are tensors, and of a time that is a number."""
    with pytest.raises(ValueError, match=r"fdtrain\.diffusion\.process and .*step both define 'alpha'"):
        bundle(["fdtrain.diffusion.process", "fdtrain.diffusion.solvers.step"])
