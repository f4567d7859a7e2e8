"""Muon by itself against its definition, and in runs."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from checkpoints import change_state
from models import DIGITS

from fdtrain.networks.model import Model, inner_matrices
from fdtrain.training.matrix_exchange import MatrixExchange, Piece
from fdtrain.training.muon import Muon, orthogonal
from fdtrain.training.plan import prepare
from fdtrain.training.zero import SteppedRange

SHAPES = [(5, 5), (4, 9), (12, 3), (6, 2, 3, 3)]


def matrix(shape, singular):
    """One with these singular values, float64."""
    draws = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=draws, dtype=torch.float64))[0] for n in shape)
    return left[:, : len(singular)] @ torch.diag(torch.tensor(singular).double()) @ right[: len(singular)]


@pytest.mark.parametrize("shape", [(6, 6), (6, 40), (40, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_newton_schulz_is_near_the_polar_factor(shape, dtype):
    """Every singular value down to a hundredth of the norm comes into the band of the published coefficients, and no
    singular vector turns."""
    whole = matrix(shape, [100.0, 60.0, 25.0, 7.0, 3.0, 1.5])
    left, _, right = torch.linalg.svd(whole, full_matrices=False)
    found = orthogonal(whole.float(), dtype).double()
    aligned = left.T @ found @ right.T
    rounding = 1e-4 if dtype == torch.float32 else 0.03
    assert (aligned - torch.diag(aligned.diagonal())).abs().max() < rounding
    assert aligned.diagonal().min() > 0.68 - rounding
    assert aligned.diagonal().max() < 1.14 + rounding


def plain(gradients, weight, momentum, lr, decay):
    """The update of Jordan et al. 2024 in NumPy: the polynomial acts on the singular values alone."""
    shape = weight.shape
    for gradient in gradients:
        momentum = 0.95 * momentum + gradient
        left, s, right = np.linalg.svd((gradient + 0.95 * momentum).reshape(shape[0], -1), full_matrices=False)
        s = s / np.sqrt((s**2).sum())
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        rows, columns = shape[0], math.prod(shape[1:])
        step = max(1, rows / columns) ** 0.5 * (left * s) @ right
        weight = weight - lr * decay * weight - lr * step.reshape(shape)
    return weight


def alone(p):
    """The exchange of a rank that has all of a matrix."""
    whole = SteppedRange("p", 0, p, 0, p.numel())
    return MatrixExchange([whole], [[Piece("p", 0, p.numel())]], {"p": p.shape}, 1, p.device)


def test_the_update_is_the_published_one():
    draws = np.random.default_rng(0)
    weights = [draws.normal(size=shape) for shape in SHAPES]
    gradients = [[draws.normal(size=shape) for _ in range(3)] for shape in SHAPES]
    parameters, rest = [torch.tensor(w) for w in weights], torch.ones(4)
    muon = Muon(parameters, [rest], lr=0.01, muon_lr=0.02, dtype=torch.float64, weight_decay=0.1)
    muon.found_inf = torch.zeros(())
    muon.exchanges = {p: alone(p) for p in parameters}
    for group in muon.param_groups:
        group["lr"] = 0.01 * group.get("relative_lr", 1.0)
    for step in range(3):
        for p, of_p in zip(parameters, gradients, strict=True):
            p.grad = torch.tensor(of_p[step])
        rest.grad = torch.ones(4)
        muon.step()
    for p, weight, of_p in zip(parameters, weights, gradients, strict=True):
        torch.testing.assert_close(p, torch.tensor(plain(of_p, weight, 0.0, 0.02, 0.1)))
    adamw = torch.optim.AdamW([other := torch.ones(4)], lr=0.01, weight_decay=0.1)
    for _ in range(3):
        other.grad = torch.ones(4)
        adamw.step()
    torch.testing.assert_close(rest, other)


def test_a_checkpoint_is_of_its_optimiser(launch, refused):
    """Refused in one line; one that names none, of an earlier version, is AdamW's."""
    said = launch("training.optimizer=muon", "training.steps=2", processes=0).stderr
    assert re.search(r"Muon steps \d+ matrices, [\d,]+ of the parameters; AdamW the rest", said)
    message = refused("training.optimizer=adamw", resume="auto")
    assert "training.optimizer 'muon' against 'adamw'. Restore them, or give the run another name." in message
    assert "Muon steps" not in launch("name=other", "training.steps=2", processes=0).stderr
    change_state(launch.checkpoint(2, "other"), lambda state: state["run"].pop("training.optimizer"))
    message = refused("name=other", "training.optimizer=muon", resume="auto")
    assert "training.optimizer 'adamw' against 'muon'" in message
    prepare(str(launch.config), ["name=other"], resume=True)


@pytest.mark.parametrize("network", ["ddpmpp", "vdm", "dit"])
def test_muon_leaves_the_ends_of_a_network_to_adamw(network):
    options = {"dit": {}}.get(network, {"channels": 8, "blocks": 1})
    labelled = replace(DIGITS, network=network, network_options=options, classes=["odd", "even"])
    with torch.device("meta"):
        model = Model(labelled)
    matrices = {name for name, p in model.named_parameters() if p.dim() >= 2}
    last = "output.weight" if network == "dit" else "output.2.weight"
    ends = {f"network.{name}" for name in ("input.weight", "embed_label.weight", last)}
    assert matrices - ends == set(inner_matrices(model))
    assert ends < matrices
