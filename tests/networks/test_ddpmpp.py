import pytest
import torch

from fdtrain.config import load_config
from fdtrain.data.dataset import VERSION, DatasetDescription
from fdtrain.networks.ddpmpp import DDPMpp
from fdtrain.networks.model import Model, parameter_count
from fdtrain.training.plan import model_spec


@pytest.mark.parametrize(("blocks", "published"), [(4, 61_804_419), (8, 106_632_579)])
def test_parameter_count_is_the_published_one(blocks, published):
    """DDPM++ cont. and DDPM++ cont. (deep) as score_sde_pytorch builds them at 32x32x3: 61.8 M and 106.6 M."""
    with torch.device("meta"):
        assert parameter_count(DDPMpp(3, 32, 256, blocks=blocks)) == published


def test_fourier_times_widen_one_layer():
    """NCSN++'s embedding: 256 features of the time in place of 128."""
    with torch.device("meta"):
        assert parameter_count(DDPMpp(3, 32, 256, time_embedding="fourier")) == 61_804_419 + 128 * 512


def test_images_that_cannot_be_halved_are_refused():
    with pytest.raises(ValueError, match="cannot be halved 3 times"):
        DDPMpp(1, 12, 17, multipliers=(1, 1, 1, 1))


def test_cifar10_configuration_builds_the_published_network():
    """And gives its first convolution sines and cosines of eleven octaves."""
    config = load_config("configs/cifar10.yaml")
    description = DatasetDescription(
        version=VERSION,
        name="cifar10",
        source="",
        size=32,
        channels=3,
        levels=256,
        classes=[],
        encoding="png",
        splits={},
    )
    with torch.device("meta"):
        count = parameter_count(Model(model_spec(config, description)))
    assert count == 61_804_419 + 3 * 2 * 11 * 3**2 * 128
