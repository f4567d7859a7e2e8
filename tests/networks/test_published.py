"""Parameters of the networks against those of the published codes and papers."""

import pytest
import torch

from fdtrain.capacity.estimate import parameters, published
from fdtrain.capacity.spec import model_spec
from fdtrain.config import load_config
from fdtrain.networks.dit import SIZES
from fdtrain.networks.model import NETWORKS, parameter_count


def counted(name: str, **options) -> int:
    with torch.device("meta"):
        return parameter_count(NETWORKS[name](3, 32, 256, **options))


def dense(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def conv(inputs: int, outputs: int, kernel: int = 3) -> int:
    return kernel**2 * inputs * outputs + outputs


@pytest.mark.parametrize(
    ("options", "count"),
    [({}, 61_804_419), ({"blocks": 8}, 106_632_579), ({"time_embedding": "fourier"}, 61_804_419 + 128 * 512)],
)
def test_ddpmpp(options, count):
    """DDPM++ cont. and DDPM++ cont. (deep) as score_sde_pytorch builds them at 32x32x3: 61.8 M and 106.6 M. NCSN++'s
    embedding has 256 features of the time in place of 128."""
    assert counted("ddpmpp", **options) == count


def test_cifar10_configuration_builds_the_published_network():
    """And gives its first convolution sines and cosines of eleven octaves."""
    config = load_config("cifar10")
    assert parameters(model_spec(config, published(config))) == 61_804_419 + 3 * 2 * 11 * 3**2 * 128


@pytest.mark.parametrize(
    ("n", "layers", "count"), [(128, 32, 30_577_667), (256, 32, 122_136_579), (256, 64, 237_602_819)]
)
def test_vdm(n, layers, count):
    """``ScoreUNet`` of google-research/vdm (model_vdm.py) for CIFAR-10, ImageNet-32 and ImageNet-64, counted from its
    structure, less the 4 x channels weights of the ``conditioning`` scalar, always 0."""

    def block(inputs: int) -> int:
        return 2 * inputs + conv(inputs, n) + 4 * n * n + 2 * n + conv(n, n)

    features = 3 * (1 + 2 * 2)
    ends = dense(n, 4 * n) + dense(4 * n, 4 * n) + conv(features, n) + 2 * n + conv(n, 3)
    attention, shortcut = 2 * n + 4 * conv(n, n, 1), conv(2 * n, n, 1)
    assert count == ends + (layers + 2) * block(n) + attention + (layers + 1) * (block(2 * n) + shortcut)
    assert counted("vdm", channels=n, blocks=layers, input_channels=features) == count


@pytest.mark.parametrize(("size", "millions"), [("S", 33), ("B", 130), ("L", 458), ("XL", 675)])
def test_dit(size, millions):
    """Table 4 of the paper, on latents of 4 channels, with 1000 classes and one for none; its last layer has twice the
    outputs, for a variance. The image's size does not enter."""
    with torch.device("meta"):
        network = NETWORKS["dit"](4, 32, 256, classes=1001, size=size)
    assert round((parameter_count(network) + dense(SIZES[size][1], 2 * 2 * 4)) / 1e6) == millions
