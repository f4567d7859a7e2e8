import torch

from fdtrain.networks.dit import DiT, position_embedding


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
