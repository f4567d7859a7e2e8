"""torch.compile of the network that trains, and of the one with the averaged weights, where it pays, tried out before
the first step. The modules are compiled in place: their weights keep their names.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from fdtrain import distributed
from fdtrain.capacity.layout import RunLayout
from fdtrain.config import TrainingConfig
from fdtrain.networks.model import Model
from fdtrain.training.hardware import DTYPES, exact_float32, memory_format

WORTHWHILE = 1e17
"""FLOP of a whole run on one GPU from which on compiling, which takes minutes, is won back: some five minutes of a
large one. Fixed, not measured, so that a run that is resumed decides as before. On a CPU nothing is won: its
convolutions are the library's either way (docs/lab/performance.md)."""


def worthwhile(training: TrainingConfig, layout: RunLayout, flops_per_image: int, device: torch.device) -> bool:
    """Whether to compile: as configured; at ``auto`` by the work of the run. ZeRO 3 gathers weights between the
    layers, which leaves nothing to compile."""
    if layout.zero_stage == 3:
        return False
    if training.compile != "auto":
        return training.compile
    images = training.steps * training.global_batch / layout.world_size
    return device.type == "cuda" and images * flops_per_image >= WORTHWHILE


def compile_networks(
    model: Model,
    shown: Model,
    training: TrainingConfig,
    layout: RunLayout,
    flops_per_image: int,
    device: torch.device,
    say: Callable[[str], None],
) -> bool:
    """Where it is :func:`worthwhile`, compile the network of ``model`` and take one pass forward and back, whose
    gradients go nowhere; and that of ``shown``, which is on the CPU, and take one as in evaluation.

    Every rank must call it: where one fails none is compiled.

    Returns:
        Whether they are compiled.

    Raises:
        torch.OutOfMemoryError: the pass does not fit; nor would it uncompiled.
    """
    if not worthwhile(training, layout, flops_per_image, device):
        return False
    say("compiling the network")
    failure = None
    try:
        # Every pass has the same shape.
        model.network.compile(dynamic=False)
        _one_pass(model, layout.micro_batch, training.precision, device)
        shown.network.compile(dynamic=False)
        with torch.no_grad(), exact_float32():
            _one_pass(shown.to(device), layout.micro_batch, "fp32", device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler fails in ways of its own
        # Its first paragraph: advice to whoever debugs the compiler follows.
        failure = " ".join(str(error).strip().partition("\n\n")[0].split())[:300] or type(error).__name__
    shown.to("cpu")
    failed = distributed.all_reduce_sum(torch.tensor(float(failure is not None), device=device)).item()
    if failed:
        model.network._compiled_call_impl = shown.network._compiled_call_impl = None
        failure = failure or f"failed on {failed:.0f} of {layout.world_size} processes"
        say(f"fdtrain: warning: torch.compile failed, so the network is not compiled: {failure}")
    return not failed


@contextmanager
def as_compiled(model: Model) -> Iterator[None]:
    """Passes of other shapes than those that were compiled are taken without: they are too few to compile for."""
    if model.network._compiled_call_impl is None:
        yield
        return
    with torch.compiler.set_stance("eager_on_recompile"):
        yield


def _one_pass(model: Model, images: int, precision: str, device: torch.device) -> None:
    x = torch.zeros(images, *model.spec.shape, device=device).contiguous(memory_format=memory_format(device, precision))
    t = torch.full((images,), 0.5, dtype=torch.float64, device=device)
    label = torch.zeros(images, dtype=torch.int64, device=device) if model.spec.classes else None
    weights = [p for p in model.parameters() if p.requires_grad]
    with torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32"):
        F = model(x, t, label)
    if torch.is_grad_enabled():
        # Not backward(): nothing is to be accumulated, nor reduced over the ranks.
        torch.autograd.grad(F.sum(), weights, allow_unused=True)
