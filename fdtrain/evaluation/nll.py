"""bits/dim of a whole split, with errors, by the bound and by the ODE.

Prints the numbers with all that defines them, and writes them to the run's evaluation/nll_SPLIT.json, and each
image's beside it (.safetensors). When it is interrupted, the same command continues.
"""

import argparse
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fdtrain.diffusion.likelihood import ODE_SOLVER, estimate
from fdtrain.diffusion.objective import Bound
from fdtrain.errors import UserError, check_at_least
from fdtrain.evaluation.job import Job, known
from fdtrain.evaluation.job import add_arguments as add_job_arguments
from fdtrain.evaluation.likelihood import (
    EXACT_TRACE_DIMS,
    TOLERANCE,
    Likelihood,
    also_closed,
    finest_tolerance,
    ode_bits,
    probes,
)
from fdtrain.evaluation.load import add_length
from fdtrain.evaluation.result import NllResult
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
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="of the ODE's adaptive solver")
    parser.add_argument(
        "--trace",
        choices=("auto", "exact", "hutchinson"),
        default="auto",
        help=f"of the ODE; auto: exact up to {EXACT_TRACE_DIMS} dimensions",
    )
    parser.add_argument("--images", type=int, help="the first so many images only; the result says so")
    parser.add_argument("--float64", action="store_true", help="compute in double precision")
    parser.add_argument("--batch", type=int, default=256, help="of evaluations, on each process")


def run(arguments: argparse.Namespace) -> None:
    dtype = torch.float64 if arguments.float64 else torch.float32
    check_at_least(arguments, 1, "draws", "batch", "images", "importance")
    check_seed(arguments.seed, "--seed")
    if not 0 < arguments.tolerance < math.inf:
        raise UserError("--tolerance must be positive.")
    if arguments.ode and arguments.tolerance < (finest := finest_tolerance(dtype)):
        raise UserError(f"--tolerance must be at least {finest:.1e} in this precision; --float64 admits a finer one.")
    if arguments.importance > 1 and arguments.draws % 2:
        raise UserError("--draws must be even with --importance, which divides them into halves.")
    job = Job(arguments, "nll", dtype)
    bound = job.spec.bound
    if arguments.importance > 1 and bound.discrete:
        raise UserError("--importance weighs uniform dequantisations; this model's decoder is discrete. Leave it out.")
    job.settings |= {
        "images": job.count,
        "bound": bound.describe(),
        "dequantisation": bound.dequantisation,
        "dtype": str(dtype).removeprefix("torch."),
    }
    estimates, values = {}, {}
    methods = [_elbo, *([_elbo_importance] if arguments.importance > 1 else []), *([_ode] if arguments.ode else [])]
    for method in methods:
        for key, (bits, options) in method(job).items():
            estimates[key] = _describe(bits) | options
            values[key] = bits.mean(1)
    job.finish(estimates, values=values, show=_show)


def _over_images(job: Job, name: str, method: Callable, columns: int, chunk: int, **options: Any) -> Tensor:
    """A ``method`` of a likelihood over all images and processes; ``options`` define its values, as the settings do."""

    def compute(images: range) -> Tensor:
        found = method(images, **options)
        # The ODE's values come with the evaluations that they took.
        return torch.cat([found[0].flatten(1), found[1][:, None]], 1) if isinstance(found, tuple) else found

    # Parts that another solver has left are not continued.
    return job.stored.over_images(name, compute, job.count, columns, chunk, solver=ODE_SOLVER, **options)


Estimates = dict[str, tuple[Tensor, dict[str, Any]]]
"""By name in the result: bits/dim ``(images, draws)``, and what else the result says of them."""


def _elbo(job: Job) -> Estimates:
    draws, own = job.arguments.draws, job.likelihood
    described, shape = {"draws": draws, "evaluations": draws}, (draws, job.batch // draws)
    found = {"elbo": (_over_images(job, "ELBO", own.elbo, *shape, draws=draws), described)}
    if also_closed(job.model):
        closed = Likelihood(job.model, job.split, job.seed, job.batch, own.dtype, bound=Bound(job.spec.levels))
        bits = _over_images(job, "ELBO, closed interval", closed.elbo, *shape, draws=draws)
        found["elbo_closed"] = (bits, described)
    return found


def _elbo_importance(job: Job) -> Estimates:
    draws, K = job.arguments.draws, job.arguments.importance
    options = {"draws": draws, "dequantisations": K}
    method, chunk = job.likelihood.elbo_importance, job.batch // draws
    values = _over_images(job, f"ELBO, K = {K}", method, 2, chunk, **options)
    bound, plain = values.unbind(1)
    gain = _describe((plain - bound)[:, None])
    options |= {"evaluations": draws * K, "gain": gain["bits_per_dim"], "error_gain": gain["error_images"]}
    return {"elbo_importance": (bound[:, None], options)}


def _ode(job: Job) -> Estimates:
    arguments, K, dims = job.arguments, job.arguments.importance, job.spec.dims
    exact = arguments.trace == "exact" or (arguments.trace == "auto" and dims <= EXACT_TRACE_DIMS)
    options = {"dequantisations": K, "tolerance": arguments.tolerance, "exact": exact}
    estimates = probes(exact, K)
    # Smaller than a batch where there are few images, so that several processes have something to share; but a third of
    # the time is lost where a few images are solved at once (300 of the digits by 18 against 90).
    chunk = min(job.batch, max(job.count // 16, min(64, -(-job.count // 4))))
    values = _over_images(job, "ODE", job.likelihood.ode, K * estimates + 1, chunk, **options)
    nats, evaluations = values[:, :-1].view(job.count, K, estimates), values[:, -1].mean().item()
    del options["exact"]
    options |= {
        "solver": ODE_SOLVER,
        "dequantisation": job.spec.bound.ode_dequantisation,
        "trace": "exact" if exact else "Hutchinson, Rademacher",
        "probes": None if exact else estimates,
        "nfe": evaluations / K,
        "evaluations": evaluations,
    }
    found = {"ode": (job.spec.bound.bits_per_dim(nats.mean(2), dims), options)}
    if K > 1:
        found["ode_importance"] = (ode_bits(nats, job.spec), options)
    return found


def _describe(bits: Tensor) -> dict[str, float | None]:
    e = estimate(bits)
    errors = {"error_draws": known(e.error_draws), "error_images": known(e.error_images)}
    return {"bits_per_dim": e.mean, **errors}


def _show(numbers: NllResult) -> None:
    print(f"{numbers.coverage}, {numbers.levels} levels, {numbers.dtype}")
    print(f"bound: {numbers.bound}; dequantisation: {numbers.dequantisation}")
    for title, value in numbers.estimates():
        errors = {"over draws": value.error_draws, "over images": value.error_images}
        there = ", ".join(f"{what} {error:.4f}" for what, error in errors.items() if error is not None)
        how = "; ".join([*([f"standard error {there}"] if there else []), *value.how])
        print(f"{title} {value.bits_per_dim:.4f} bits/dim  ({how})")
