"""fdtrain.load and what it returns."""

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, environment
from models import DIGITS, filled, saved

import fdtrain
from fdtrain.data.split import Split
from fdtrain.diffusion.objective import dequantise, normal_nll
from fdtrain.evaluation.likelihood import Likelihood
from fdtrain.evaluation.samples import Sampler, save_optimised
from fdtrain.networks.model import Model
from fdtrain.randomness import Purpose, stream

NAMES = [f"digit {i}" for i in range(10)]
GUIDED = replace(DIGITS, classes=NAMES, null_class=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(filled(DIGITS), tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def guided(tmp_path_factory):
    return fdtrain.load(saved(filled(GUIDED), tmp_path_factory.mktemp("guided")))


@pytest.fixture(scope="module")
def normal(tmp_path_factory):
    """An untrained model: its field is zero, and its images are standard normal."""
    return fdtrain.load(saved(Model(DIGITS), tmp_path_factory.mktemp("normal")))


def run(script, variables):
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_it_imports_nothing():
    others = "{name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names"
    script = f"import sys; before = set(sys.modules); import fdtrain; print(*{others})"
    assert run(script, environment()) == "fdtrain"
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        fdtrain.laod  # noqa: B018


@pytest.mark.parametrize(
    ("set_by_user", "waiting"),
    [({}, "PASSIVE 3000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"), ({"GOMP_SPINCOUNT": "5"}, "PASSIVE 5")],
)
def test_threads_that_wait_leave_the_cores_to_others_unless_the_user_says_otherwise(set_by_user, waiting):
    script = "import fdtrain, os; print(os.environ['OMP_WAIT_POLICY'], os.environ.get('GOMP_SPINCOUNT'))"
    ours = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    inherited = {name: value for name, value in environment().items() if name not in ours}
    assert run(script, inherited | set_by_user) == waiting


def test_samples_are_those_of_the_command(folder):
    model = fdtrain.load(folder)
    images = model.sample(5, steps=4, seed=3)
    assert (images.shape, images.dtype) == ((5, 1, 8, 8), torch.uint8)
    assert torch.equal(images, Sampler(steps=4).draw(model.module, range(5), seed=3))
    assert torch.equal(model.sample(3, steps=4, seed=3), images[:3])
    assert not torch.equal(model.sample(5, steps=4, seed=4), images)
    by_two = model.sample(5, steps=4, seed=3, batch=2)
    assert (by_two.int() - images.int()).abs().max() <= 1  # Batches round differently.
    times = [1.0, 0.5, 0.1, 0.0]
    expected = Sampler("ode", tuple(times), 3).draw(model.module, range(2), seed=0)
    assert torch.equal(model.sample(2, solver="ode", grid=times), expected)
    assert model.pixels(torch.tensor([0, 16], dtype=torch.uint8)).tolist() == [0, 255]
    save_optimised(folder, model.origin.sha256, "ode", 3, times)
    assert torch.equal(model.sample(2, solver="ode", grid="optimised", steps=3), expected)


def test_progress_counts_every_evaluation(folder, capsys):
    model = fdtrain.load(folder, device="auto")
    for solver in ("ode", "sde", "heun_edm"):
        shown = model.sample(5, steps=3, solver=solver, batch=2, progress=True)
        assert torch.equal(shown, model.sample(5, steps=3, solver=solver))
        assert "100%" in capsys.readouterr().err.splitlines()[-1]


def test_a_picture_of_images():
    images = torch.arange(17, dtype=torch.uint8)[:, None, None, None].expand(17, 1, 8, 8)
    picture = np.asarray(fdtrain.grid(images, levels=17, columns=17))
    # Lines of two pixels between images, which are magnified alike.
    side = picture.shape[0] - 4
    assert picture.shape == (side + 4, 17 * (side + 2) + 2)
    assert picture[side // 2, side // 2 :: side + 2].tolist() == [round(255 * i / 16) for i in range(17)]
    assert fdtrain.grid(images.numpy().repeat(3, 1)).mode == "RGB"


def test_samples_by_label(guided):
    each = guided.sample(12, steps=2)
    assert torch.equal(each, guided.sample(12, steps=2, label=[i % 10 for i in range(12)]))
    seven = guided.sample(3, steps=2, label="digit 7", guidance=2.0)
    assert torch.equal(seven, guided.sample(3, steps=2, label=7, guidance=2.0))
    assert torch.equal(seven, Sampler(steps=2, label=7, guidance=2.0).draw(guided.module, range(3), seed=0))
    assert torch.equal(seven, guided.sample(3, steps=2, label=torch.tensor([7, 7, 7]), guidance=2.0))


def test_bits_per_dim_are_those_of_the_command(folder, digits):
    model, split = fdtrain.load(folder), Split(digits, "test")
    images, _ = split.batch(range(6))
    found = model.bits_per_dim(images, draws=8, seed=2)
    values = Likelihood(model.module, split, seed=2).elbo(range(6), 8)
    assert torch.equal(found.values, values.mean(1))
    assert found.mean == pytest.approx(values.mean().item())
    assert (found.errors > 0).all()
    # The images' errors make the error of the mean.
    assert found.errors.square().sum().sqrt().item() / 6 == pytest.approx(found.estimate.error_draws)
    assert torch.equal(model.bits_per_dim(images.numpy(), draws=8, seed=2).values, found.values)
    assert model.bits_per_dim(images, draws=1).errors.isnan().all()


def test_likelihoods_of_the_standard_normal(normal, digits):
    images, _ = Split(digits, "test").batch(range(2))
    uniform = np.stack([stream(5, Purpose.EVALUATE, i, 0).random(DIGITS.shape, dtype=np.float32) for i in range(2)])
    density = -normal_nll(dequantise(images, torch.from_numpy(uniform), DIGITS.levels)).double()
    volume = DIGITS.dims * math.log(2 / DIGITS.levels)
    found = normal.log_prob(images, seed=5)
    torch.testing.assert_close(found, density + volume, rtol=1e-4, atol=0)
    bits = normal.bits_per_dim(images, draws=50)
    # Of 50 other dequantisations.
    torch.testing.assert_close(bits.values, -found / (DIGITS.dims * math.log(2)), rtol=0.02, atol=0)
    probed = normal.log_prob(images, seed=5, exact=False)
    torch.testing.assert_close(probed, found)
    assert normal.log_prob(images, seed=5, dequantisations=8, exact=False).mean() > found.mean() - 1


def test_likelihoods_by_label(guided, digits):
    images, labels = Split(digits, "test").batch(range(4))
    given = guided.bits_per_dim(images, label=labels, draws=4).values
    assert torch.equal(given, guided.bits_per_dim(images, label=[NAMES[i] for i in labels], draws=4).values)
    without = guided.bits_per_dim(images, draws=4).values
    assert not torch.equal(given, without)
    coarse = {"tolerance": 0.1, "exact": False}
    assert not torch.equal(guided.log_prob(images, label=labels, **coarse), guided.log_prob(images, **coarse))


@pytest.mark.parametrize("t", [0.0, 1.0, 0.3])
def test_field(folder, guided, t):
    model = fdtrain.load(folder)
    x = torch.randn(3, *DIGITS.shape, generator=torch.Generator().manual_seed(0))
    times = torch.full((3,), t, dtype=torch.float64)
    expected = model.module(x, times)
    assert expected.abs().max() > 0
    assert torch.equal(model.field(x, t), expected)
    assert torch.equal(model.field(x, times.float()), model.module(x, times.float().double()))
    labels = torch.tensor([1, 2, 3])
    assert torch.equal(guided.field(x, t, label=[1, 2, 3]), guided.module(x, times, labels))
    assert torch.equal(guided.field(x, t), guided.module(x, times, torch.full((3,), 10)))
    x.requires_grad_()
    assert torch.autograd.grad(model.field(x, t).sum(), x)[0].abs().max() > 0


def test_what_it_shows(folder, guided):
    model = fdtrain.load(folder)
    assert repr(model) == "<fdtrain model of digits: ddpmpp, 1x8x8, 17 levels, cpu>"
    assert "10 classes" in repr(guided)
    assert model.to("cpu") is model
    assert model.device == torch.device("cpu")
    images = model.sample(6, steps=2)
    assert model.grid(images, columns=3) == fdtrain.grid(model.pixels(images), columns=3)


IMAGES = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda m, g: fdtrain.load("/nowhere"), "no folder /nowhere"),
        (lambda m, g: m.to("abacus"), "device abacus: Expected one of"),
        (lambda m, g: m.sample(0), "count must be at least 1"),
        (lambda m, g: m.sample(1, seed=-1), "seed must be from 0 to 9223372036854775807"),
        (lambda m, g: m.sample(1, solver="ddpm"), "solver: there is no 'ddpm'; there are sde"),
        (lambda m, g: m.sample(1, grid=[1.0, 0.0, 0.5]), "grid: a time grid must fall strictly"),
        (lambda m, g: m.sample(1, grid=[1.0, 0.5, 0.0], steps=3), "grid: 3 times are 2 steps, not 3"),
        (lambda m, g: m.sample(1, label=1), "label: this model was trained without labels"),
        (lambda m, g: m.sample(1, guidance=2.0), "guidance needs a model trained with network.label_dropout"),
        (lambda m, g: g.sample(1, label=10), "label 10: this model has classes 0 to 9: digit 0"),
        (lambda m, g: g.sample(3, label=[1, 2]), "2 labels for 3 images"),
        (lambda m, g: m.bits_per_dim(IMAGES.float()), "uint8 are needed, these are 128 of torch.float32"),
        (lambda m, g: m.bits_per_dim(IMAGES[0]), r"shape \(1, 8, 8\), this model needs"),
        (lambda m, g: m.bits_per_dim(IMAGES + 17), "level 17, where 17 levels are 0 to 16"),
        (lambda m, g: m.grid(IMAGES[:0]), "these are 0 of torch.uint8"),
        (lambda m, g: fdtrain.grid(IMAGES[0]), r"shape \(1, 8, 8\); \(N, C, H, W\)"),
        (lambda m, g: fdtrain.grid(IMAGES, columns=0), "columns must be at least 1"),
        (lambda m, g: m.log_prob(IMAGES, tolerance=1e-9), "tolerance must be at least 3.1e-05"),
        (lambda m, g: m.field(torch.zeros(2, 3, 8, 8), 0.5), "this model takes"),
        (lambda m, g: m.field(torch.zeros(2, 1, 8, 8), 1.5), r"one time in \[0, 1\]"),
        (lambda m, g: m.field(torch.zeros(2, 1, 8, 8), torch.ones(3)), "or one for each image"),
    ],
)
def test_mistakes(folder, guided, call, part):
    with pytest.raises(fdtrain.UserError, match=part):
        call(fdtrain.load(folder), guided)
