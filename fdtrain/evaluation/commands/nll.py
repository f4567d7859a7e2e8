"""bits/dim of a whole split, with errors, by the bound and by the ODE.

Prints the numbers with all that defines them, and writes them to the run's evaluation/nll_SPLIT.json, and each
image's beside it (.safetensors). When it is interrupted, the same command continues.
"""

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fdtrain import distributed
from fdtrain.diffusion.clocks import time_density
from fdtrain.diffusion.likelihood import ODE_SOLVER, Estimate, OdeStart, estimate
from fdtrain.diffusion.objective import Bound
from fdtrain.errors import UserError
from fdtrain.evaluation import nll, result
from fdtrain.evaluation.job import Job
from fdtrain.evaluation.job import add_arguments as add_job_arguments
from fdtrain.evaluation.load import add_length
from fdtrain.evaluation.result import BoundEstimate, NllResult, OdeEstimate
from fdtrain.evaluation.wording import counted
from fdtrain.randomness import check_seed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_job_arguments(parser)
    add_length(parser)
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
    parser.add_argument("--batch", type=int, default=256, help="of evaluations, on each process")


def run(arguments: argparse.Namespace) -> None:
    _check(arguments)
    start = time.perf_counter()
    job = _job(arguments)
    estimates, values = {}, {}
    methods = [_elbo]
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
        job.write(numbers)
        for path in job.paths:
            option = "--json" if path == arguments.json else "the run's results"
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


def _job(arguments: argparse.Namespace) -> Job:
    """The model and its images, with everything that defines the numbers."""
    dtype = torch.float64 if arguments.float64 else torch.float32
    job = Job(arguments, "nll", dtype)
    bound = job.spec.bound
    if arguments.importance > 1 and bound.discrete:
        raise UserError("--importance weighs uniform dequantisations; this model's decoder is discrete. Leave it out.")
    job.settings |= {
        "kind": "nll",
        "images": job.count,
        "bound": bound.describe(),
        "dequantisation": bound.dequantisation,
        "dtype": str(dtype).removeprefix("torch."),
    }
    return job


def _over_images(job: Job, name: str, method: Callable, chunk: int, columns: int, options: dict, **more: Any) -> Tensor:
    """A ``method`` of nll.py over all images and processes; ``options`` define its values, as the settings do."""
    dtype = torch.float64 if job.arguments.float64 else torch.float32
    common = {"seed": job.seed, "batch": job.batch, "dtype": dtype}

    def compute(images: range) -> Tensor:
        found = method(job.model, job.split, images, **options, **more, **common)
        # The ODE's values come with the evaluations that they took.
        return torch.cat([found[0].flatten(1), found[1][:, None]], 1) if isinstance(found, tuple) else found

    # Parts that another solver has left are not continued.
    solver = {"solver": ODE_SOLVER} if method is nll.ode else {}
    return job.over_images(name, compute, chunk, columns, job.count, method=name, **options, **solver)


def _elbo(job: Job, arguments: argparse.Namespace) -> dict[str, tuple[Tensor, dict]]:
    draws, spec, options = arguments.draws, job.spec, {"draws": arguments.draws}
    density = nll.time_density_of(spec.bound.interval, spec.scale)
    chunk, described = arguments.batch // draws, options | {"evaluations": draws}
    found = {"elbo": (_over_images(job, "ELBO", nll.elbo, chunk, draws, options, density=density), described)}
    if nll.also_closed(job.model):
        closed = {"density": time_density("asinh", spec.scale), "bound": Bound(spec.levels)}
        bits = _over_images(job, "ELBO, closed interval", nll.elbo, chunk, draws, options, **closed)
        found["elbo_closed"] = (bits, described)
    return found


def _elbo_importance(job: Job, arguments: argparse.Namespace) -> dict[str, tuple[Tensor, dict]]:
    draws, K = arguments.draws, arguments.importance
    options, density = (
        {"draws": draws, "dequantisations": K},
        nll.time_density_of(job.spec.bound.interval, job.spec.scale),
    )
    method, chunk = nll.elbo_importance, arguments.batch // draws
    bound, plain = _over_images(job, f"ELBO, K = {K}", method, chunk, 2, options, density=density).unbind(1)
    gain = estimate((plain - bound)[:, None])
    options |= {"evaluations": draws * K, "gain": gain.mean, "error_gain": _describe(gain)["error_images"]}
    return {"elbo_importance": (bound[:, None], options)}


def _ode(job: Job, arguments: argparse.Namespace) -> dict[str, tuple[Tensor, dict]]:
    K, dims = arguments.importance, job.spec.dims
    exact = arguments.trace == "exact" or (arguments.trace == "auto" and dims <= nll.EXACT_TRACE_DIMS)
    options = {"dequantisations": K, "tolerance": arguments.tolerance, "exact": exact}
    probes = nll.probes(exact, K)
    # Smaller than a batch where there are few images, so that several processes have something to share.
    chunk = min(arguments.batch, max(1, job.count // 16))
    values = _over_images(job, "ODE", nll.ode, chunk, K * probes + 1, options)
    nats = values[:, :-1].view(job.count, K, probes)
    del options["exact"]
    options |= {
        "solver": ODE_SOLVER,
        "dequantisation": OdeStart(job.spec.bound).dequantisation,
        "trace": "exact" if exact else "Hutchinson, Rademacher",
        "probes": None if exact else probes,
        "nfe": values[:, -1].mean().item() / K,
        "evaluations": values[:, -1].mean().item(),
    }
    found = {"ode": (job.spec.bound.bits_per_dim(nats.mean(2), dims), options)}
    if K > 1:
        found["ode_importance"] = (nll.ode_bits(nats, job.spec), options)
    return found


def _show(numbers: NllResult) -> None:
    print(f"{numbers.coverage} of {numbers.split_text}, {numbers.levels} levels, {numbers.dtype}")
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
