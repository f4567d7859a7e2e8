"""bits/dim of a whole split, with errors, by the bound and by the ODE.

Prints the numbers with all that defines them, and writes them to the run's evaluation/nll_SPLIT.json, and each
image's beside it (.safetensors). When it is interrupted, the same command continues.
"""

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fdtrain import distributed
from fdtrain.diffusion.clocks import time_density
from fdtrain.diffusion.likelihood import ODE_SOLVER, Estimate, OdeStart, estimate
from fdtrain.diffusion.objective import Bound
from fdtrain.errors import UserError
from fdtrain.evaluation import nll, result
from fdtrain.evaluation.load import add_length, open_model
from fdtrain.evaluation.partial_values import StoredValues
from fdtrain.evaluation.result import BoundEstimate, NllResult, OdeEstimate
from fdtrain.evaluation.run_data import open_split
from fdtrain.evaluation.wording import counted
from fdtrain.randomness import check_seed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a run (its newest checkpoint), a checkpoint, or an export")
    add_length(parser)
    parser.add_argument("--data", help="a packed data set (default: the run's own)")
    parser.add_argument("--split", help="of it (default: the run's, or test)")
    parser.add_argument("--draws", type=int, default=20, help="draws of time and noise per image (and dequantisation)")
    parser.add_argument(
        "--importance",
        type=int,
        default=1,
        metavar="K",
        help="the importance-weighted bounds over K dequantisations too, at K times the work",
    )
    parser.add_argument("--ode", action="store_true", help="the ODE likelihood too (many more evaluations)")
    parser.add_argument("--tolerance", type=float, default=nll.TOLERANCE, help="of the ODE's adaptive solver")
    parser.add_argument(
        "--trace",
        choices=("auto", "exact", "hutchinson"),
        default="auto",
        help=f"of the ODE; auto: exact up to {nll.EXACT_TRACE_DIMS} dimensions",
    )
    parser.add_argument("--images", type=int, help="the first so many images only; the result says so")
    parser.add_argument("--float64", action="store_true", help="compute in double precision")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=256, help="of evaluations, on each process")
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    parser.add_argument("--device", help="such as cpu or cuda:1; by default the GPU, where there is one")


def run(arguments: argparse.Namespace) -> None:
    _check(arguments)
    start = time.perf_counter()
    job = _Job(arguments)
    estimates, values = {}, {}
    methods = [_elbo]
    if nll.also_closed(job.model):
        methods.append(_elbo_closed)
    if arguments.importance > 1:
        methods.append(_elbo_importance)
    if arguments.ode:
        methods.append(_ode)
    for method in methods:
        for key, (bits, options) in method(job, arguments).items():
            estimates[key] = _describe(estimate(bits)) | options
            values[key] = bits.mean(1)
    numbers = NllResult.model_validate(
        {**job.settings, **estimates, "seconds": time.perf_counter() - start, "device": str(arguments.device)}
    )
    if distributed.rank() == 0:
        _show(numbers)
        for path in filter(None, (job.path, arguments.json)):
            option = "--json" if path == arguments.json else "the run's results"
            result.write(numbers, path, option)
            result.write_values(values, path.with_suffix(".safetensors"), option)
        job.stored.discard()


def _check(arguments: argparse.Namespace) -> None:
    for name in ("draws", "batch", "images", "tolerance", "importance"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name} must be positive.")
    if arguments.importance > 1 and arguments.draws % 2:
        raise UserError("--draws must be even with --importance, which divides them into halves.")
    finest = nll.finest_tolerance(torch.float64 if arguments.float64 else torch.float32)
    if arguments.ode and arguments.tolerance < finest:
        raise UserError(f"--tolerance must be at least {finest:.1e} in this precision; --float64 admits a finer one.")
    check_seed(arguments.seed, "--seed")


class _Job:
    """The model, the images, and everything that defines the numbers."""

    def __init__(self, arguments: argparse.Namespace):
        self.model, origin = open_model(arguments.model, arguments.ema_length, shared=True)
        self.split = open_split(arguments.model, arguments.data, arguments.split)
        nll.check_same_images(self.model.spec, self.split)
        if arguments.importance > 1 and self.model.spec.bound.discrete:
            raise UserError(
                "--importance weighs uniform dequantisations; this model's decoder is discrete. Leave it out."
            )
        self.count = min(arguments.images or len(self.split), len(self.split))
        self.device, dtype = arguments.device, torch.float64 if arguments.float64 else torch.float32
        self.model.to(self.device, dtype)
        self.density = nll.time_density_of(self.model.spec.bound.interval, self.model.spec.scale)
        self.common = {"seed": arguments.seed, "batch": arguments.batch, "dtype": dtype}
        self.settings = {
            "kind": "nll",
            **origin.identity(),
            **result.split_identity(self.split),
            "images": self.count,
            "bound": self.model.spec.bound.describe(),
            "dequantisation": self.model.spec.bound.dequantisation,
            "dtype": str(dtype).removeprefix("torch."),
            "seed": arguments.seed,
            "batch": arguments.batch,
        }
        first = None if self.count == len(self.split) else self.count
        self.path = origin.result_file("nll", self.split.name, first)
        results = origin.results or (arguments.json and arguments.json.parent)
        self.stored = StoredValues(results, self.device)

    def over_images(self, name: str, compute: Callable[[range], Tensor], chunk: int, columns: int, options: dict):
        """``compute`` over all images and processes, stored on the way."""
        request = {**self.settings, "method": name, **options}
        return self.stored.over_images(name, self.count, chunk, columns, compute, request)


def _elbo(job: _Job, arguments: argparse.Namespace) -> dict[str, tuple[Tensor, dict]]:
    options = {"draws": arguments.draws}
    chunk, columns = max(1, arguments.batch // arguments.draws), arguments.draws
    compute = partial(_of_images, nll.elbo, job, density=job.density, **options)
    bits = job.over_images("ELBO", compute, chunk, columns, options)
    return {"elbo": (bits, options | {"evaluations": arguments.draws})}


def _elbo_closed(job: _Job, arguments: argparse.Namespace) -> dict[str, tuple[Tensor, dict]]:
    """Of a model of a truncated interval whose field is finite on all of [0, 1]."""
    spec, options = job.model.spec, {"draws": arguments.draws}
    bound = Bound(spec.levels)
    chunk, columns = max(1, arguments.batch // arguments.draws), arguments.draws
    density = time_density("asinh", spec.scale)
    compute = partial(_of_images, nll.elbo, job, density=density, bound=bound, **options)
    bits = job.over_images("ELBO, closed interval", compute, chunk, columns, options)
    return {"elbo_closed": (bits, options | {"evaluations": arguments.draws})}


def _elbo_importance(job: _Job, arguments: argparse.Namespace) -> dict[str, tuple[Tensor, dict]]:
    draws, K = arguments.draws, arguments.importance
    options = {"draws": draws, "dequantisations": K}
    compute = partial(_of_images, nll.elbo_importance, job, density=job.density, **options)
    bound, plain = job.over_images(f"ELBO, K = {K}", compute, max(1, arguments.batch // draws), 2, options).unbind(1)
    gain = estimate((plain - bound)[:, None])
    options |= {"evaluations": draws * K, "gain": gain.mean, "error_gain": _describe(gain)["error_images"]}
    return {"elbo_importance": (bound[:, None], options)}


def _ode(job: _Job, arguments: argparse.Namespace) -> dict[str, tuple[Tensor, dict]]:
    K, dims = arguments.importance, job.model.spec.dims
    exact = arguments.trace == "exact" or (arguments.trace == "auto" and dims <= nll.EXACT_TRACE_DIMS)
    options = {"dequantisations": K, "tolerance": arguments.tolerance, "exact": exact}
    probes = nll.probes(exact, K)

    def compute(images: range) -> Tensor:
        nats, nfe = _of_images(nll.ode, job, images, **options)
        return torch.cat([nats.flatten(1), nfe[:, None]], 1)

    # Smaller than a batch where there are few images, so that several processes have something to share.
    chunk = min(arguments.batch, max(1, job.count // 16))
    # Parts that another solver has left are not continued.
    values = job.over_images("ODE", compute, chunk, K * probes + 1, options | {"solver": ODE_SOLVER})
    nats = values[:, :-1].view(job.count, K, probes)
    del options["exact"]
    options |= {
        "solver": ODE_SOLVER,
        "dequantisation": OdeStart(job.model.spec.bound).dequantisation,
        "trace": "exact" if exact else "Hutchinson, Rademacher",
        "probes": None if exact else probes,
        "nfe": values[:, -1].mean().item() / K,
        "evaluations": values[:, -1].mean().item(),
    }
    values = {"ode": (job.model.spec.bound.bits_per_dim(nats.mean(2), dims), options)}
    if K > 1:
        values["ode_importance"] = (nll.ode_bits(nats, job.model.spec), options)
    return values


def _of_images(method: Callable, job: _Job, images: range, **settings):
    return method(job.model, job.split, images, **settings, **job.common)


def _show(numbers: NllResult) -> None:
    count, whole = numbers.images, numbers.images_in_split
    of = f"all {whole}" if count == whole else f"the first {count} of {whole}"
    print(f"{of} images of {numbers.split_text}, {numbers.levels} levels, {numbers.dtype}")
    print(f"bound: {numbers.bound}; dequantisation: {numbers.dequantisation}")
    for title, value in numbers.estimates():
        print(f"{title} {value.bits_per_dim:.4f} bits/dim  ({_definition(value)})")


def _definition(value: BoundEstimate | OdeEstimate) -> str:
    """The standard errors of an estimate, and what it was computed with."""
    parts = []
    if value.error_draws is not None:
        parts.append(f"over draws {value.error_draws:.4f}")
    if value.error_images is not None:
        parts.append(f"over images {value.error_images:.4f}")
    parts = [f"standard error {', '.join(parts)}"] if parts else []
    if isinstance(value, BoundEstimate):
        parts.append(f"{counted(value.draws, 'draw')} per image")
        if value.gain is not None:
            error = "" if value.error_gain is None else f" +- {value.error_gain:.4f}"
            parts.append(f"{value.gain:.4f}{error} below the plain bound of the same draws")
    if value.dequantisations > 1:
        parts.append(f"{value.dequantisations} dequantisations")
    if isinstance(value, OdeEstimate):
        parts.append(f"{value.dequantisation} dequantisation")
        parts.append(f"{value.solver} at {value.tolerance:g}, {value.nfe:.0f} evaluations, {value.trace} trace")
    return "; ".join(parts)


def _describe(e: Estimate) -> dict[str, float | None]:
    errors = {"error_draws": e.error_draws, "error_images": e.error_images}
    return {"bits_per_dim": e.mean, **{k: None if math.isnan(v) else v for k, v in errors.items()}}
