"""bits/dim of a whole split, with errors, by the bound and by the ODE.

Prints the numbers with all that defines them, and writes them to the run's evaluation/nll_SPLIT.json, and each
image's beside it (.safetensors). When it is interrupted, the same command goes on where it was.
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
from fdtrain.data.split import Split
from fdtrain.diffusion.likelihood import Estimate, estimate
from fdtrain.diffusion.objective import bits_per_dim
from fdtrain.diffusion.time_sampling import time_density
from fdtrain.errors import UserError
from fdtrain.evaluation.likelihood import nll, partial_values
from fdtrain.evaluation.reporting import result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a run (its newest checkpoint), a checkpoint, or an export")
    parser.add_argument("--data", required=True, help="a packed data set")
    parser.add_argument("--split", default="test")
    parser.add_argument("--draws", type=int, default=20, help="draws of time and noise per image (and dequantisation)")
    parser.add_argument("--antithetic", action="store_true", help="draw the noise in pairs eps, -eps")
    parser.add_argument(
        "--importance",
        type=int,
        default=1,
        metavar="K",
        help="the importance-weighted bounds over K dequantisations too, at K times the work",
    )
    parser.add_argument("--ode", action="store_true", help="the ODE likelihood too (many more evaluations)")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="of the ODE's adaptive solver")
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
    found, values = dict(job.settings), {}
    methods = [_elbo]
    if arguments.importance > 1:
        methods.append(_elbo_importance)
    if arguments.ode:
        methods.append(_ode)
    for method in methods:
        for key, (bits, about) in method(job, arguments).items():
            found[key] = _describe(estimate(bits)) | about
            values[key] = bits.mean(1)
    found |= {"seconds": time.perf_counter() - start, "device": str(arguments.device)}
    if distributed.rank() == 0:
        _show(found)
        for path in filter(None, (job.path, arguments.json)):
            option = "--json" if path == arguments.json else "the run's results"
            result.write(found, path, option)
            result.write_values(values, path.with_suffix(".safetensors"), option)
        for folder in job.kept:
            partial_values.discard(folder)


def _check(arguments: argparse.Namespace) -> None:
    for name in ("draws", "batch", "images", "tolerance", "importance"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name} must be positive.")
    # Halves for the importance-weighted bound, pairs for antithetic draws.
    unit = (2 if arguments.antithetic else 1) * (2 if arguments.importance > 1 else 1)
    if arguments.draws % unit:
        raise UserError(f"--draws must be a multiple of {unit} with these options.")
    # Finer than rounding, the solver's steps shrink until it makes no way.
    finest = 10 * torch.finfo(torch.float64 if arguments.float64 else torch.float32).eps
    if arguments.ode and arguments.tolerance < finest:
        raise UserError(f"--tolerance must be at least {finest:.1e} in this precision; --float64 admits a finer one.")
    if arguments.seed < 0:
        raise UserError("--seed must not be negative.")


class _Job:
    """The model, the images, and everything that defines the numbers."""

    def __init__(self, arguments: argparse.Namespace):
        self.model, self.spec, subject = result.open_model(arguments.model)
        self.split = Split(arguments.data, arguments.split)
        nll.check_same_images(self.spec, self.split)
        self.count = min(arguments.images or len(self.split), len(self.split))
        self.device, dtype = arguments.device, torch.float64 if arguments.float64 else torch.float32
        self.model.to(self.device, dtype)
        # Draws of t for the bound are spread as the model's scale suggests; any density gives the same mean.
        self.density = time_density("asinh", self.spec.scale)
        self.common = {"seed": arguments.seed, "batch": arguments.batch, "dtype": dtype}
        self.settings = {
            "kind": "nll",
            **subject.identity(),
            **result.split_identity(self.split),
            "images": self.count,
            "dequantisation": "uniform",
            "dtype": str(dtype).removeprefix("torch."),
            "seed": arguments.seed,
            "batch": arguments.batch,
        }
        name = arguments.split if self.count == len(self.split) else f"{arguments.split}_first{self.count}"
        self.path = subject.results and subject.results / f"nll_{name}.json"
        self.results = subject.results or (arguments.json and arguments.json.parent)
        self.kept: list[Path | None] = []

    def over_images(self, name: str, compute: Callable[[range], Tensor], chunk: int, columns: int, about: dict):
        """``compute`` over all images and processes, kept on the way."""
        self.kept.append(partial_values.folder_for(self.results, {**self.settings, "method": name, **about}))
        return partial_values.over_images(self.count, chunk, columns, compute, self.kept[-1], self.device, name)


def _elbo(job: _Job, arguments: argparse.Namespace) -> dict[str, tuple[Tensor, dict]]:
    about = {"draws": arguments.draws, "antithetic": arguments.antithetic}
    chunk, columns = max(1, arguments.batch // arguments.draws), arguments.draws // (1 + arguments.antithetic)
    compute = partial(_of_images, nll.elbo, job, density=job.density, **about)
    bits = job.over_images("ELBO", compute, chunk, columns, about)
    return {"elbo": (bits, about | {"evaluations": arguments.draws})}


def _elbo_importance(job: _Job, arguments: argparse.Namespace) -> dict[str, tuple[Tensor, dict]]:
    draws, K = arguments.draws, arguments.importance
    about = {"draws": draws, "dequantisations": K, "antithetic": arguments.antithetic}
    compute = partial(_of_images, nll.elbo_importance, job, density=job.density, **about)
    bound, plain = job.over_images(f"ELBO, K = {K}", compute, max(1, arguments.batch // draws), 2, about).unbind(1)
    gain = estimate((plain - bound)[:, None])
    about |= {"evaluations": draws * K, "gain": gain.mean, "error_gain": _describe(gain)["error_images"]}
    return {"elbo_importance": (bound[:, None], about)}


def _ode(job: _Job, arguments: argparse.Namespace) -> dict[str, tuple[Tensor, dict]]:
    K, dims = arguments.importance, job.spec.dims
    exact = arguments.trace == "exact" or (arguments.trace == "auto" and dims <= nll.EXACT_TRACE_DIMS)
    about = {"dequantisations": K, "tolerance": arguments.tolerance, "exact": exact}
    probes = nll.probes(exact, K)

    def compute(images: range) -> Tensor:
        nats, nfe = _of_images(nll.ode, job, images, **about)
        return torch.cat([nats.flatten(1), nfe[:, None]], 1)

    # Smaller than a batch where there are few images, so that several processes have something to share.
    chunk = min(arguments.batch, max(1, job.count // 16))
    values = job.over_images("ODE", compute, chunk, K * probes + 1, about)
    nats = values[:, :-1].view(job.count, K, probes)
    del about["exact"]
    about |= {
        "trace": "exact" if exact else "Hutchinson, Rademacher",
        "probes": None if exact else probes,
        "nfe": values[:, -1].mean().item() / K,
        "evaluations": values[:, -1].mean().item(),
    }
    found = {"ode": (bits_per_dim(nats.mean(2), dims, job.spec.levels), about)}
    if K > 1:
        found["ode_importance"] = (nll.ode_bits(nats, job.spec), about)
    return found


def _of_images(method: Callable, job: _Job, images: range, **settings):
    return method(job.model, job.spec, job.split, images, **settings, **job.common)


TITLES = {
    "elbo": "ELBO",
    "elbo_importance": "ELBO, importance-weighted",
    "ode": "ODE",
    "ode_importance": "ODE, importance-weighted",
}


def _show(found: dict) -> None:
    count, whole = found["images"], found["images_in_split"]
    of = f"all {whole}" if count == whole else f"the first {count} of {whole}"
    print(f"{of} images of {found['dataset']}/{found['split']}, {found['levels']} levels, {found['dtype']}")
    for key, title in TITLES.items():
        if key in found:
            print(f"{title} {found[key]['bits_per_dim']:.4f} bits/dim  ({_about(found[key])})")


def _about(e: dict) -> str:
    parts = []
    if e["error_draws"] is not None:
        parts.append(f"over draws {e['error_draws']:.4f}")
    if e["error_images"] is not None:
        parts.append(f"over images {e['error_images']:.4f}")
    parts = [f"standard error {', '.join(parts)}"] if parts else []
    if "draws" in e:
        parts.append(f"{e['draws']} {'antithetic ' * e['antithetic']}draws per image")
    if "gain" in e:
        error = "" if e["error_gain"] is None else f" +- {e['error_gain']:.4f}"
        parts.append(f"{e['gain']:.4f}{error} below the plain bound of the same draws")
    if e.get("dequantisations", 1) > 1:
        parts.append(f"{e['dequantisations']} dequantisations")
    if "nfe" in e:
        parts.append(f"Dormand-Prince at {e['tolerance']:g}, {e['nfe']:.0f} evaluations, {e['trace']} trace")
    return "; ".join(parts)


def _describe(e: Estimate) -> dict[str, float | None]:
    errors = {"error_draws": e.error_draws, "error_images": e.error_images}
    return {"bits_per_dim": e.mean, **{k: None if math.isnan(v) else v for k, v in errors.items()}}
