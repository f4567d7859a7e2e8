import pytest
import torch
from models import DIGITS
from torch import nn

from fdtrain.diffusion.solvers import GRID, time_grid
from fdtrain.errors import UserError
from fdtrain.evaluation import pictures, samples
from fdtrain.evaluation.samples import Sampler
from fdtrain.networks.model import Model


class PointNetwork(nn.Module):
    """F* of data that is one image, at t > 0: v / t with x0 known. Samples must be that image."""

    def __init__(self, image):
        super().__init__()
        self.image = nn.Parameter(image)

    def forward(self, x, t, label=None):
        t = t.view(-1, 1, 1, 1)
        return (torch.sqrt(1 - t * t) * x - self.image) / (t * t)


def test_samples_of_a_point_are_the_point():
    levels = torch.arange(64).view(1, 8, 8) % 17
    model = Model(DIGITS)
    model.network = PointNetwork(((levels + 0.5) * 2 / 17 - 1).double())
    times = time_grid(GRID, 400, 1000)
    for solver in ("sde1", "sde2", "ode1", "ode2"):
        paths = Sampler(solver, tuple(times), 400).paths(model.double(), range(3))
        assert paths.shape == (3, samples.PATH_IMAGES, 1, 8, 8)
        assert torch.equal(paths[0, -1].long(), levels)


def test_an_image_depends_on_its_number_alone():
    torch.manual_seed(0)
    model = Model(DIGITS)
    torch.nn.init.normal_(model.network.output[-1].weight, std=0.1)
    together, alone = (Sampler("ode", steps=5).draw(model, images, 0).int() for images in (range(6), [4]))
    assert (together[4] - alone[0]).abs().max() <= 1
    assert (together[4] - together[3]).abs().max() > 1
    solved = [Sampler("heun_edm", steps=5).solve(model, images, seed=1) for images in (range(4), [2])]
    torch.testing.assert_close(solved[1][0], solved[0][2])


def test_a_model_that_diverged_is_reported():
    model = Model(DIGITS)
    torch.nn.init.constant_(model.network.output[-1].bias, torch.nan)
    with pytest.raises(UserError, match="the model's output is not finite: its weights are broken"):
        Sampler(steps=2).draw(model, range(2), 0)


def test_grid_and_pixels():
    pixels = samples.to_pixels(torch.tensor([[[[0, 16], [8, 4]]]], dtype=torch.uint8), 17)
    assert pixels.flatten().tolist() == [0, 255, 128, 64]
    sheet = pictures.grid(pixels.repeat(3, 1, 1, 1), columns=2, zoom=3)
    assert sheet.shape == (1, 18, 18)
    assert sheet[0, 2, 2] == 0
    assert sheet[0, 2, 7] == 255
    assert sheet[0, 0, 0] == 128


def test_small_images_are_magnified_by_whole_factors():
    """To a sheet of about 300 pixels or more."""
    assert [pictures.zoom_for(*each) for each in ((8, 10), (8, 1), (28, 8), (64, 2), (256, 1))] == [6, 37, 2, 3, 1]
