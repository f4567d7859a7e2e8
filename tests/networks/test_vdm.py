import pytest
import torch

from fdtrain.networks.model import parameter_count
from fdtrain.networks.vdm import VDM


def published(n: int, layers: int) -> int:
    """Parameters of ``ScoreUNet`` of google-research/vdm (model_vdm.py), with_attention=False, images of 3 channels.

    Counted from its structure; the two of the noise schedule are not the network's.
    """

    def conv(inputs: int, outputs: int, kernel: int = 3) -> int:
        return kernel**2 * inputs * outputs + outputs

    def block(inputs: int) -> int:
        return 2 * inputs + conv(inputs, n) + 4 * n * n + 2 * n + conv(n, n)

    shortcut = conv(2 * n, n, 1)
    attention = 2 * n + 4 * conv(n, n, 1)
    condition = (n + 1) * 4 * n + 4 * n + 4 * n * 4 * n + 4 * n
    features = 3 * (1 + 2 * 2)
    return (
        condition
        + conv(features, n)
        + (layers + 2) * block(n)
        + attention
        + (layers + 1) * (block(2 * n) + shortcut)
        + 2 * n
        + conv(n, 3)
    )


@pytest.mark.parametrize(
    ("channels", "blocks", "count"), [(128, 32, 30_577_667), (256, 32, 122_136_579), (256, 64, 237_602_819)]
)
def test_parameter_count_is_the_published_one(channels, blocks, count):
    """Of CIFAR-10, ImageNet-32, ImageNet-64, less the 4 x channels weights of the ``conditioning`` scalar, always 0."""
    with torch.device("meta"):
        assert parameter_count(VDM(3, 32, 256, channels=channels, blocks=blocks, input_channels=3 * 5)) == count
    assert count == published(channels, blocks) - 4 * channels


def test_resolution_is_full_throughout():
    sizes = set()
    network = VDM(1, 8, 17, channels=8, blocks=2)
    for block in [*network.inward, *network.middle, *network.outward]:
        block.register_forward_hook(lambda module, inputs, output: sizes.add(output.shape[2:]))
    network(torch.randn(1, 1, 8, 8), torch.rand(1))
    assert sizes == {(8, 8)}
