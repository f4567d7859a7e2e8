"""Checkpoints of score_sde_pytorch, in their published layout, against a network that is written down here."""

import json
import math
import os
import re
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as nnf

import fdtrain
from fdtrain.commands import entry
from fdtrain.convert import score_sde
from fdtrain.diffusion.clocks import CLOCKS
from fdtrain.diffusion.predictors import eps_hat
from fdtrain.diffusion.process import alpha, per_image
from fdtrain.errors import UserError

CHANNELS, MULTIPLIERS, BLOCKS, SIZE = 8, (1, 2, 2), 2, 16


class Published:
    """DDPM++ as published: its prediction of the noise in float64, from parameters that are named by the number of the
    module in the order of the calls. Each is drawn when it is first needed, so that the same lines say what a
    checkpoint holds and what is computed of it."""

    def __init__(self, attention=(8,), seed=0):
        self.attention = attention
        self.state = OrderedDict({"module.sigmas": torch.ones(10, dtype=torch.float64)})
        self.generator = torch.Generator().manual_seed(seed)
        self.noise(torch.zeros(1, 3, SIZE, SIZE), torch.ones(1))

    def take(self, name, *shape):
        name = f"module.all_modules.{self.module}.{name}"
        if name not in self.state:
            scale = 0.3 if len(shape) == 1 else 1.5 / math.sqrt(math.prod(shape[1:]))
            self.state[name] = torch.randn(shape, generator=self.generator) * scale
        return self.state[name].double()

    def layer(self, name, *shape):
        """Weight and bias of outputs and inputs."""
        return self.take(f"{name}weight", *shape), self.take(f"{name}bias", shape[0])

    def norm(self, name, h):
        return nnf.group_norm(h, min(h.shape[1] // 4, 32), *self.layer(name, h.shape[1]), eps=1e-6)

    def residual(self, x, outputs, resample=None):
        self.module += 1
        inputs = x.shape[1]
        h = nnf.silu(self.norm("GroupNorm_0.", x))
        if resample == "down":
            h, x = (y.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5)) for y in (h, x))
        elif resample == "up":
            h, x = (y.repeat_interleave(2, 2).repeat_interleave(2, 3) for y in (h, x))
        h = nnf.conv2d(h, *self.layer("Conv_0.", outputs, inputs, 3, 3), padding=1)
        condition = nnf.linear(nnf.silu(self.embedding), *self.layer("Dense_0.", outputs, 4 * CHANNELS))
        h = nnf.silu(self.norm("GroupNorm_1.", h + condition[:, :, None, None]))
        h = nnf.conv2d(h, *self.layer("Conv_1.", outputs, outputs, 3, 3), padding=1)
        if resample or inputs != outputs:
            x = nnf.conv2d(x, *self.layer("Conv_2.", outputs, inputs, 1, 1))
        return (x + h) / math.sqrt(2)

    def attend(self, x, always=False):
        if x.shape[-1] not in self.attention and not always:
            return x
        self.module += 1
        width = x.shape[1]
        h = self.norm("GroupNorm_0.", x).flatten(2)

        def product(i, h):
            weight, bias = self.take(f"NIN_{i}.W", width, width), self.take(f"NIN_{i}.b", width)
            return torch.einsum("bip,io->bop", h, weight) + bias[:, None]

        q, k, v = (product(i, h) for i in range(3))
        weights = (torch.einsum("bcp,bcq->bpq", q, k) / math.sqrt(width)).softmax(-1)
        return (x + product(3, torch.einsum("bpq,bcq->bcp", weights, v)).view_as(x)) / math.sqrt(2)

    def plain(self, *shape):
        self.module += 1
        return self.layer("", *shape)

    def noise(self, x, tau):
        self.module = -1
        frequencies = torch.exp(-math.log(10000) * torch.arange(CHANNELS // 2).double() / (CHANNELS // 2 - 1))
        angles = 999 * tau[:, None] * frequencies
        hidden = nnf.linear(torch.cat([angles.sin(), angles.cos()], 1), *self.plain(4 * CHANNELS, CHANNELS))
        self.embedding = nnf.linear(nnf.silu(hidden), *self.plain(4 * CHANNELS, 4 * CHANNELS))
        h = nnf.conv2d(x.double(), *self.plain(CHANNELS, 3, 3, 3), padding=1)
        skips = [h]
        for level, multiplier in enumerate(MULTIPLIERS):
            for _ in range(BLOCKS):
                h = self.attend(self.residual(h, multiplier * CHANNELS))
                skips.append(h)
            if level < len(MULTIPLIERS) - 1:
                h = self.residual(h, h.shape[1], "down")
                skips.append(h)
        h = self.residual(self.attend(self.residual(h, h.shape[1]), always=True), h.shape[1])
        for level, multiplier in reversed(list(enumerate(MULTIPLIERS))):
            for _ in range(BLOCKS + 1):
                h = self.residual(torch.cat([h, skips.pop()], 1), multiplier * CHANNELS)
            h = self.attend(h)
            if level:
                h = self.residual(h, h.shape[1], "up")
        self.module += 1
        h = nnf.silu(self.norm("", h))
        return nnf.conv2d(h, *self.plain(3, h.shape[1], 3, 3), padding=1)

    def checkpoint(self, shadow_seed=1):
        """As published, with other numbers in the average than in the model."""
        averages = list(Published(self.attention, shadow_seed).state.values())[1:]
        moments = {i: {"step": 5, "exp_avg": torch.zeros(2)} for i in range(2)}
        optimizer = {"state": moments, "param_groups": [{"lr": 2e-4, "betas": (0.9, 0.999), "params": [0, 1]}]}
        ema = {"decay": 0.9999, "num_updates": 5, "shadow_params": averages}
        return {"optimizer": optimizer, "model": self.state, "ema": ema, "step": 5}


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "checkpoint_8.pth"
        torch.save(content, path)
        return path

    return write


def convert(path, *options):
    folder = path.parent / "export"
    assert entry.main(["convert", "score_sde", str(path), str(folder), "--size", str(SIZE), *options]) == 0
    return folder


TAU = torch.tensor([1e-5, 0.001, 0.04, 0.3, 0.7, 1.0], dtype=torch.float64)


def noised(sde):
    """Images at :data:`TAU`: as the published process has them, as ours does, and our times."""
    generator = torch.Generator().manual_seed(2)
    x0 = torch.rand(len(TAU), 3, SIZE, SIZE, generator=generator, dtype=torch.float64) * 2 - 1
    eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    e = per_image(torch.exp(-0.1 * TAU - 9.95 * TAU**2), x0)
    z = e.sqrt() * x0 + (1 - e if sde == "subvp" else (1 - e).sqrt()) * eps
    t = CLOCKS["sub_vp" if sde == "subvp" else "linear_vp"].quantile(TAU)
    return z, per_image(alpha(t), x0) * x0 + per_image(t, x0) * eps, t


@pytest.mark.parametrize(
    ("sde", "weights", "attention"),
    [("vp", "ema", (8,)), ("vp", "model", ()), ("subvp", "ema", (16, 4))],
)
@torch.no_grad()
def test_the_noise_is_the_published_networks(write, sde, weights, attention):
    published = Published(attention)
    model = fdtrain.load(convert(write(published.checkpoint()), "--sde", sde, "--weights", weights))
    z, x, t = noised(sde)
    expected = (Published(attention, 1) if weights == "ema" else published).noise(z, TAU)
    assert expected.std() > 0.1
    found = eps_hat(model.field(x.float(), t), x.float(), t)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    module = model.module.double()
    torch.testing.assert_close(eps_hat(module(x, t), x, t), expected, rtol=0, atol=1e-9)


def test_what_was_converted_is_an_export(write):
    content = Published().checkpoint()
    # As a network that was not wrapped saves itself.
    content["model"] = {name.removeprefix("module."): value for name, value in content["model"].items()}
    folder = convert(write(content), "--licence", "apache-2.0")
    record = json.loads((folder / "export.json").read_text())
    assert (record["step"], record["source"]) == (5, "checkpoint_8.pth of score_sde_pytorch, ema weights, vp")
    assert "| source | checkpoint_8.pth of score_sde_pytorch, ema weights, vp |" in (folder / "README.md").read_text()
    model = fdtrain.load(folder)
    assert model.spec.network_options["multipliers"] == list(MULTIPLIERS)
    images = model.sample(2, steps=3)
    assert images.shape == (2, 3, SIZE, SIZE)
    assert torch.isfinite(model.bits_per_dim(images, draws=2).values).all()


class Code:
    """Runs a command where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def lacking(change):
    content = Published().checkpoint()
    change(content)
    return content


OTHERS = {
    # NCSN++'s pyramid, DDPM's shortcut, random Fourier features, and what is of no network.
    "9.Conv2d_0.weight": torch.ones(8, 8, 3, 3),
    "5.NIN_0.W": torch.ones(8, 8),
    "40.weight": torch.ones(8),
    "3.Conv_0.weight": torch.ones(12, 8, 3, 3),
    "3.Conv_0.bias": torch.ones(8, dtype=torch.int64),
    "2.weight": torch.ones(1).expand(8, 10**6, 10**3, 3),
    "0.weight": torch.ones(1, 10**6),
}


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ([1, 2], "holds no 'model' of named tensors"),
        (lacking(lambda c: c.pop("ema")), "holds no averaged weights ('ema'). Take those that were trained"),
        (lacking(lambda c: c["ema"]["shadow_params"].pop()), "its averaged weights are not those of its network"),
        ({"model": {"module.conv1.weight": torch.ones(1)}}, "is not of DDPM++ (it has 'module.conv1.weight')"),
        ({"model": {}}, "is not of DDPM++ (its modules are others, or their shapes)"),
        *[
            ({"model": Published().state | {f"module.all_modules.{name}": value}}, "is not of DDPM++ ")
            for name, value in OTHERS.items()
        ],
    ],
)
def test_other_contents(write, content, part):
    path, weights = write(content), "model" if "DDPM++" in part else "ema"
    with pytest.raises(UserError, match=re.escape(str(path)) + ".*" + re.escape(part)):
        score_sde.convert(path, weights, "vp", SIZE, "x")


def test_files_that_hold_code_or_nothing_and_a_size_that_cannot_be(write, tmp_path):
    with pytest.raises(UserError, match="--size 18: this network halves its images 2 times"):
        score_sde.convert(write(Published().checkpoint()), "ema", "vp", 18, "x")
    path = write({"model": Code(tmp_path / "made"), "ema": None})
    with pytest.raises(UserError, match="or holds code, which is not run") as error:
        score_sde.read(path)
    assert "weights_only" not in str(error.value)
    assert not (tmp_path / "made").exists()
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="It is damaged"):
        score_sde.read(path)
    with pytest.raises(UserError, match="no file "):
        score_sde.read(tmp_path / "absent.pth")
