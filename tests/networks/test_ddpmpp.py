import pytest
import torch

from fdtrain.capacity.estimate import parameters, published
from fdtrain.capacity.spec import model_spec
from fdtrain.config import load_config
from fdtrain.networks.ddpmpp import DDPMpp
from fdtrain.networks.model import parameter_count


@pytest.mark.parametrize(
    ("options", "count"),
    [({}, 61_804_419), ({"blocks": 8}, 106_632_579), ({"time_embedding": "fourier"}, 61_804_419 + 128 * 512)],
)
def test_parameter_count_is_the_published_one(options, count):
    """DDPM++ cont. and DDPM++ cont. (deep) as score_sde_pytorch builds them at 32x32x3: 61.8 M and 106.6 M. NCSN++'s
    embedding has 256 features of the time in place of 128."""
    with torch.device("meta"):
        assert parameter_count(DDPMpp(3, 32, 256, **options)) == count


def test_cifar10_configuration_builds_the_published_network():
    """And gives its first convolution sines and cosines of eleven octaves."""
    config = load_config("cifar10")
    assert parameters(model_spec(config, published(config))) == 61_804_419 + 3 * 2 * 11 * 3**2 * 128
