import pytest
import torch

from fdtrain.networks.dit import SIZES, DiT, position_embedding
from fdtrain.networks.model import parameter_count


def paper(size: str, inputs: int, outputs: int, labels: int, patch: int = 2) -> int:
    """Parameters of the paper's DiT with patches of ``inputs`` channels, counted from its structure."""
    blocks, d, _ = SIZES[size]

    def dense(a: int, b: int) -> int:
        return a * b + b

    block = dense(d, 3 * d) + dense(d, d) + dense(d, 4 * d) + dense(4 * d, d) + dense(d, 6 * d)
    ends = dense(inputs * patch**2, d) + dense(d, 2 * d) + dense(d, outputs * patch**2)
    return blocks * block + ends + dense(256, d) + dense(d, d) + labels * d


@pytest.mark.parametrize(
    ("size", "count", "millions"),
    [("S", 32_471_436, 33), ("B", 129_528_588, 130), ("L", 456_791_052, 458), ("XL", 673_653_900, 675)],
)
def test_parameter_count(size, count, millions):
    """Unconditional, on pixels of 3 channels. Table 4 of the paper, on latents of 4, has a learned variance, 1000
    classes and one for none; the image's size does not enter."""
    with torch.device("meta"):
        assert parameter_count(DiT(3, 64, 256, size=size)) == count
    assert count == paper(size, 3, 3, 0)
    assert round(paper(size, 4, 8, 1001) / 1e6) == millions


def test_positions_are_the_rows_and_columns():
    embedding = position_embedding(4, 16).view(4, 4, 16)
    columns, rows = embedding.chunk(2, -1)
    assert torch.equal(columns, columns[:1].expand_as(columns))
    assert torch.equal(rows, rows[:, :1].expand_as(rows))
    assert len({tuple(e.tolist()) for e in embedding.flatten(0, 1)}) == 16


def test_a_pixel_comes_out_where_it_went_in():
    """A network of no more than patches in and out: channels and positions must not be mixed up."""
    network = DiT(2, 8, 17, size="S")
    network.blocks = torch.nn.ModuleList()
    network.position.zero_()
    d = network.input.out_features
    with torch.no_grad():
        # Small beside a constant, so that the normalisation keeps it in proportion.
        network.input.weight.copy_(torch.eye(d, 8))
        network.output.weight.copy_(torch.eye(8, d))
    x = torch.zeros(1, 2, 8, 8)
    x[0, 1, 3, 6] = 1.0
    assert network(x, torch.rand(1)).flatten().argmax() == x.flatten().argmax()
