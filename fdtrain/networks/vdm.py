"""VDM: the network of Kingma et al. 2021 ("Variational Diffusion Models"), behind 2.65 bits/dim on CIFAR-10.

Residual blocks at full resolution throughout, as many again that take the outputs of the first by skip
connections, attention in the middle only. Against the published code: a label takes the place of its
``conditioning`` scalar, and the output is ``f`` alone, not ``f + x``, which is the predictor's to add
(``network_skip``).
"""

from functools import partial

from torch import Tensor, nn

from fdtrain.networks.embeddings import positional
from fdtrain.networks.layers import Attention, ResidualBlock, conv, dense, group_norm, initialised, with_skips

LECUN = partial(nn.init.kaiming_normal_, nonlinearity="linear")
"""Initial weights: normal, of variance 1 / inputs."""


class VDM(nn.Module):
    """The network.

    Args: besides those of every network (:data:`fdtrain.networks.model.ARGUMENTS`):
        channels: width. Published: 128 for CIFAR-10, 256 for ImageNet.
        blocks: residual blocks on the way in; one more on the way out. Published: 32, for ImageNet-64 64.
        dropout: within the residual blocks.
    """

    def __init__(
        self,
        image_channels: int,
        image_size: int,
        levels: int,
        classes: int = 0,
        channels: int = 128,
        blocks: int = 32,
        dropout: float = 0.0,
        input_channels: int | None = None,
        checkpointing: bool = False,
    ):
        super().__init__()
        self.channels, self.levels, self.checkpointing = channels, levels, checkpointing
        width = 4 * channels
        self.embed = nn.Sequential(dense(channels, width, LECUN), nn.SiLU(), dense(width, width, LECUN), nn.SiLU())
        self.embed_label = nn.Embedding(classes, width) if classes else None
        self.input = conv(input_channels or image_channels, channels, LECUN)

        def condition(outputs: int) -> nn.Linear:
            return initialised(nn.Linear(width, outputs, bias=False), nn.init.zeros_)

        def residual(inputs: int) -> ResidualBlock:
            return ResidualBlock(inputs, channels, "condition", condition, LECUN, dropout)

        self.inward = nn.ModuleList(residual(channels) for _ in range(blocks))
        self.middle = nn.ModuleList([residual(channels), Attention(channels, LECUN), residual(channels)])
        self.outward = nn.ModuleList(residual(2 * channels) for _ in range(blocks + 1))
        self.output = nn.Sequential(group_norm(channels), nn.SiLU(), conv(channels, image_channels, nn.init.zeros_))

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        condition = self.embed(positional(t, self.channels, self.levels))
        if self.embed_label is not None:
            condition = condition + self.embed_label(label)
        inward, middle, outward = ([[block] for block in blocks] for blocks in (self.inward, self.middle, self.outward))
        return self.output(with_skips(inward, middle, outward, self.input(x), condition, self.checkpointing))
