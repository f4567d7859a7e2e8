"""Functions of whole matrices by three real processes, each of which has a part: ``test_matrix_exchange.py`` is one."""

from itertools import accumulate

import pytest
import torch
from conftest import fork

from fdtrain import distributed
from fdtrain.training.matrix_exchange import MatrixExchange, Piece
from fdtrain.training.zero import SteppedRange

SHAPES = {
    name: torch.Size(shape)
    for name, shape in {"a": (4, 9), "b": (3, 2, 3, 3), "c": (2, 1), "d": (12, 5), "e": (7, 7), "f": (3, 3)}.items()
}
SIZES = {name: shape.numel() for name, shape in SHAPES.items()}


def flat_thirds(ranks=3):
    """As at ZeRO's stages 1 and 2: all matrices in a row, cut into equal parts."""
    whole, starts = sum(SIZES.values()), dict(zip(SIZES, accumulate(SIZES.values(), initial=0)))
    pieces = []
    for rank in range(ranks):
        first, last = (whole * r // ranks for r in (rank, rank + 1))
        cut = {name: (max(first, at) - at, min(last, at + SIZES[name]) - at) for name, at in starts.items()}
        pieces.append([Piece(name, a, b - a) for name, (a, b) in cut.items() if b > a])
    return pieces


def thirds_of_each(ranks=3):
    """As at stage 3: every matrix cut into equal parts, the last of which may be shorter, or nothing."""
    pieces = [[] for _ in range(ranks)]
    for name, size in SIZES.items():
        part = -(-size // ranks)
        for rank in range(ranks):
            if (count := min(part, size - rank * part)) > 0:
                pieces[rank].append(Piece(name, rank * part, count))
    return pieces


def cube(matrix):
    """Depends on every element of it."""
    return matrix @ matrix.T @ matrix


def check() -> None:
    distributed.connect()
    draws = torch.Generator().manual_seed(0)
    before = {name: torch.randn(SHAPES[name], generator=draws) for name in SHAPES}
    after = {name: cube(whole.flatten(1)).flatten() for name, whole in before.items()}
    for pieces in (flat_thirds(), thirds_of_each()):
        mine = pieces[distributed.rank()]
        starts = accumulate((part.count for part in mine), initial=0)
        flat = torch.cat([before[part.matrix].flatten()[part.start : part.start + part.count] for part in mine])
        ranges = [SteppedRange(p.matrix, p.start, flat, at, p.count) for p, at in zip(mine, starts)]
        for most in (1, 60, 10**6):
            exchanged = flat.clone()
            MatrixExchange(ranges, pieces, SHAPES, most, flat.device).apply(cube, exchanged)
            for r in ranges:
                torch.testing.assert_close(r.of(exchanged), after[r.parameter][r.start : r.start + r.count])


def test_every_process_gets_its_part_of_the_function_of_the_whole(tmp_path):
    result = fork([__file__], tmp_path, processes=3)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("pieces", [flat_thirds(), thirds_of_each()], ids=["flat", "each"])
def test_each_matrix_is_computed_once_and_the_work_is_shared(pieces, monkeypatch):
    computed = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        mine = [SteppedRange(p.matrix, p.start, torch.empty(0), 0, p.count) for p in pieces[rank]]
        exchange = MatrixExchange(mine, pieces, SHAPES, 60, torch.device("cpu"))
        of_rounds = [{part.matrix for of_rank in r.received for part in of_rank} for r in exchange.rounds]
        assert all(len(names) == 1 or sum(SIZES[name] for name in names) <= 60 for names in of_rounds)
        computed.append({r.parameter for r in exchange.whole}.union(*of_rounds))
    assert all(computed)
    assert sorted(name for names in computed for name in names) == sorted(SHAPES)


if __name__ == "__main__":
    check()
