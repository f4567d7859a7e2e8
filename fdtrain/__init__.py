"""fdtrain: likelihood training of diffusion models on the closed time interval, on DeepSpeed.

    import fdtrain
    model = fdtrain.load("runs/digits")  # a run, a checkpoint or an export
    fdtrain.grid(model.pixels(model.sample(64, steps=10)))

The names below are imported when they are first used: ``import fdtrain`` itself imports nothing, torch included.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fdtrain.api import BitsPerDim, TrainedModel, grid, load
    from fdtrain.errors import UserError
    from fdtrain.training.in_process import TrainedRun, train

# Read when torch loads OpenMP. By default threads that wait for others spin for milliseconds, and take the cores from
# these where anything else runs. A spin of microseconds spares the sleep between two operations on idle cores.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

__version__ = "0.1.0"
__all__ = ["BitsPerDim", "TrainedModel", "TrainedRun", "UserError", "__version__", "grid", "load", "train"]

_MODULES = {
    **dict.fromkeys(("BitsPerDim", "TrainedModel", "grid", "load"), "api"),
    **dict.fromkeys(("TrainedRun", "train"), "training.in_process"),
    "UserError": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'fdtrain' has no attribute {name!r}")
    try:
        return getattr(import_module(f"fdtrain.{_MODULES[name]}"), name)
    except ModuleNotFoundError as error:
        from fdtrain.errors import UserError, missing

        raise UserError(missing(error.name or str(error))) from None
