"""DDPM++: the residual U-Net of Song et al. 2021 ("Score-Based Generative Modeling through SDEs", appendix H).

BigGAN-type residual blocks, which also resample; self-attention at chosen resolutions; skip connections
rescaled by 1/sqrt(2); the last convolution of every branch starts at zero, and so does the output: an
untrained network is the standard normal, exactly.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from fdtrain.networks.embeddings import TIME_EMBEDDINGS
from fdtrain.networks.layers import GLOROT, Attention, ResidualBlock, conv, dense, group_norm, with_skips


class DDPMpp(nn.Module):
    """The U-Net.

    Args: besides those of every network (:data:`fdtrain.networks.model.ARGUMENTS`):
        channels: width at full resolution.
        multipliers: width of each level, in units of ``channels``; the resolution halves from level to level.
        blocks: residual blocks of a level on the way down (one more on the way up).
        attention: resolutions, in pixels, at which the blocks are followed by self-attention.
        dropout: within the residual blocks.
        time_embedding: ``"positional"`` (DDPM++) or ``"fourier"`` (NCSN++).

    Raises:
        ValueError: the images cannot be halved once per level.
    """

    def __init__(
        self,
        image_channels: int,
        image_size: int,
        levels: int,
        classes: int = 0,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 4,
        attention: Sequence[int] = (16,),
        dropout: float = 0.0,
        time_embedding: str = "positional",
        input_channels: int | None = None,
        checkpointing: bool = False,
    ):
        super().__init__()
        if image_size % 2 ** (len(multipliers) - 1):
            raise ValueError(
                f"images of {image_size} pixels cannot be halved {len(multipliers) - 1} times; give fewer multipliers"
            )
        self.channels, self.levels, self.checkpointing = channels, levels, checkpointing
        self.time_embedding, width = TIME_EMBEDDINGS[time_embedding]
        embedding = 4 * channels
        first, second = dense(width * channels, embedding, GLOROT), dense(embedding, embedding, GLOROT)
        self.embed = nn.Sequential(first, nn.SiLU(), second, nn.SiLU())
        self.embed_label = nn.Embedding(classes, embedding) if classes else None
        self.input = conv(input_channels or image_channels, channels, GLOROT)

        def time(outputs: int) -> nn.Linear:
            return dense(embedding, outputs, GLOROT)

        def residual(inputs: int, outputs: int, resample: str | None = None) -> ResidualBlock:
            return ResidualBlock(inputs, outputs, "time", time, GLOROT, dropout, resample, rescale=True)

        def attend(channels: int) -> Attention:
            return Attention(channels, GLOROT, rescale=True)

        width, size, skip_widths = channels, image_size, [channels]
        self.down = nn.ModuleList()
        for level, multiplier in enumerate(multipliers):
            if level > 0:
                self.down.append(nn.ModuleList([residual(width, width, "down")]))
                size //= 2
                skip_widths.append(width)
            for _ in range(blocks):
                stage: list[nn.Module] = [residual(width, multiplier * channels)]
                width = multiplier * channels
                if size in attention:
                    stage.append(attend(width))
                self.down.append(nn.ModuleList(stage))
                skip_widths.append(width)

        self.middle = nn.ModuleList([residual(width, width), attend(width), residual(width, width)])

        self.up = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for block in range(blocks + 1):
                modules: list[nn.Module] = [residual(width + skip_widths.pop(), multiplier * channels)]
                width = multiplier * channels
                if block == blocks:
                    # As published: on the way up attention follows a level's last block only.
                    if size in attention:
                        modules.append(attend(width))
                    if level > 0:
                        modules.append(residual(width, width, "up"))
                        size *= 2
                self.up.append(nn.ModuleList(modules))

        self.output = nn.Sequential(group_norm(width), nn.SiLU(), conv(width, image_channels, nn.init.zeros_))

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        embedding = self.embed(self.time_embedding(t, self.channels, self.levels))
        if self.embed_label is not None:
            embedding = embedding + self.embed_label(label)
        h = self.input(x)
        return self.output(with_skips(self.down, [self.middle], self.up, h, embedding, self.checkpointing))
