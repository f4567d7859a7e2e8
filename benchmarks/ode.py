"""Error and evaluations of the ODE's likelihood by the solver's tolerance (docs/evaluation.md).

    python benchmarks/ode.py spectrum
    python benchmarks/ode.py mixture --data data/fashion_mnist
    python benchmarks/ode.py run runs/fashion_mnist --data data/fashion_mnist

``spectrum``: Gaussian dimensions with the spectrum of images, whose density is known. ``mixture``: the exact field of
N(x_i, 0.01^2) about the first 2,000 training images. ``run``: a trained model in float32. The latter two against the
finest tolerance in float64, with the same dequantisation and the same Hutchinson probe of each image.
"""

import argparse
import math
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from fdtrain.data.split import Split
from fdtrain.diffusion.likelihood import ode_nll
from fdtrain.diffusion.objective import dequantise
from fdtrain.evaluation.likelihood import Likelihood
from fdtrain.evaluation.load import load_model

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from densities import spectrum as spectrum_density

DEVIATION = 0.01


def table(arguments: argparse.Namespace, dims: int, solve, exact: Tensor | None = None) -> None:
    """``solve(tolerance, dtype)`` gives nats ``(images,)`` and their evaluations."""
    if exact is None:
        begin = time.perf_counter()
        exact, nfe = solve(arguments.reference, torch.float64)
        seconds = time.perf_counter() - begin
        mean = exact.mean().item() / (dims * math.log(2))
        print(f"reference: {mean:.4f} bits per dimension of the density, {nfe.mean():.0f} evaluations, {seconds:.0f} s")
    print("tolerance  error in bits/dim: mean  largest  bias    evaluations: mean  most   images/s", flush=True)
    for tolerance in arguments.tolerances:
        begin = time.perf_counter()
        found, nfe = solve(tolerance, torch.float32)
        speed = len(found) / (time.perf_counter() - begin)
        error = (found - exact) / (dims * math.log(2))
        size = f"{error.abs().mean():>23.1e}  {error.abs().max():>7.1e}  {error.mean():>+8.1e}"
        print(f"{tolerance:<9.0e}{size}{nfe.mean():>19.0f}  {nfe.max():>4.0f}  {speed:>9.2g}", flush=True)


def spectrum(arguments: argparse.Namespace) -> None:
    data = spectrum_density()
    x0 = data.sample(arguments.images, torch.Generator().manual_seed(0))

    def solve(tolerance: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        result = ode_nll(data.field, x0, tolerance)
        return result.nll[:, 0], result.nfe.double()

    table(arguments, 16, solve, data.nll(x0))


def mixture(arguments: argparse.Namespace) -> None:
    levels = Split(arguments.data, "train").batch(range(2000))[0]
    means = dequantise(levels, torch.full(levels.shape, 0.5, dtype=torch.float64), 256).flatten(1)
    generator = torch.Generator().manual_seed(0)
    x0 = means[torch.randperm(2000, generator=generator)[: arguments.images]]
    x0 = x0 + DEVIATION * torch.randn(x0.shape, dtype=torch.float64, generator=generator)
    probes = (2 * torch.randint(0, 2, x0[:, None].shape, generator=generator) - 1).double()

    def field(x: Tensor, t: Tensor) -> Tensor:
        """``(alpha (1 - v) x - E[x_i | x]) / (alpha^2 v + t^2)``."""
        a, t = (1 - t * t).sqrt()[:, None], t[:, None]
        w = a * a * DEVIATION**2 + t * t
        mean = ((a * x @ means.T - 0.5 * a * a * means.square().sum(1)) / w).softmax(1) @ means
        return (a * (1 - DEVIATION**2) * x - mean) / w

    def solve(tolerance: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        result = ode_nll(field, x0, tolerance, probes)
        return result.nll[:, 0], result.nfe.double()

    table(arguments, means.shape[1], solve)


def run(arguments: argparse.Namespace) -> None:
    model = load_model(arguments.run)
    split = Split(arguments.data, "test")

    def solve(tolerance: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        likelihood = Likelihood(model.to(dtype), split, batch=arguments.images, dtype=dtype)
        nats, nfe = likelihood.ode(range(arguments.images), tolerance, exact=False)
        return nats[:, 0, 0], nfe

    table(arguments, model.spec.dims, solve)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for kind in (spectrum, mixture, run):
        command = commands.add_parser(kind.__name__)
        command.set_defaults(kind=kind)
        if kind is run:
            command.add_argument("run")
        if kind is not spectrum:
            command.add_argument("--data", required=True)
            command.add_argument("--reference", type=float, default=1e-7)
        command.add_argument("--images", type=int, default=16)
        command.add_argument("--tolerances", type=float, nargs="+", default=[1e-2, 3e-3, 1e-3, 1e-4, 1e-5])
    arguments = parser.parse_args()
    arguments.kind(arguments)


if __name__ == "__main__":
    main()
