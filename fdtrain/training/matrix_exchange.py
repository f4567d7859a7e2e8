"""Functions of whole matrices where each rank has a part of them: one rank gets the parts of a matrix, computes, and
returns what the others are to have."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from fdtrain import distributed
from fdtrain.training.zero import SteppedRange

Function = Callable[[Tensor], Tensor]
"""Of a matrix, to one of its shape."""


@dataclass(frozen=True)
class Piece:
    """A run of a matrix's elements that a rank has."""

    matrix: str
    start: int
    count: int


@dataclass(frozen=True)
class Round:
    """What a rank sends to every other to be computed there, and what it gets from every other, by rank."""

    sent: list[list[SteppedRange]]
    received: list[list[Piece]]


class MatrixExchange:
    """The matrices in one flat tensor of every rank, such as ZeRO's partitions.

    A matrix that no rank has whole is computed by the rank with the least to do, the largest ones dealt first. What
    goes from rank to rank does so in rounds, in each of which a rank computes one matrix, or several of together at
    most ``most`` elements.

    Args:
        mine: this rank's part of the flat tensors.
        pieces: the same of every rank.
        shapes: of all parameters; the first dimension counts the rows.
        device: where to compute, and by which to communicate.
    """

    def __init__(
        self,
        mine: Sequence[SteppedRange],
        pieces: Sequence[Sequence[Piece]],
        shapes: dict[str, torch.Size],
        most: int,
        device: torch.device,
    ):
        self.shapes, self.device = shapes, device
        self.whole = [r for r in mine if r.count == shapes[r.parameter].numel()]
        self.rounds: list[Round] = []
        sizes = {matrix: shape.numel() for matrix, shape in shapes.items()}
        split = {part.matrix for of_rank in pieces for part in of_rank if part.count < sizes[part.matrix]}
        work, filled = [0] * len(pieces), [(0, 0)] * len(pieces)
        for matrix in sorted(split, key=lambda matrix: (-self._work(matrix), matrix)):
            rank = work.index(min(work))
            work[rank] += self._work(matrix)
            number, elements = filled[rank]
            if elements and elements + sizes[matrix] > most:
                number, elements = number + 1, 0
            filled[rank] = number, elements + sizes[matrix]
            if number == len(self.rounds):
                self.rounds.append(Round([[] for _ in pieces], [[] for _ in pieces]))
            self.rounds[number].sent[rank] += [r for r in mine if r.parameter == matrix]
            if rank == distributed.rank():
                for of_rank, received in zip(pieces, self.rounds[number].received, strict=True):
                    received += [part for part in of_rank if part.matrix == matrix]

    def _work(self, matrix: str) -> int:
        """In proportion to the operations of products of a matrix with itself."""
        size, rows = self.shapes[matrix].numel(), self.shapes[matrix][0]
        return size * min(rows, size // rows)

    def apply(self, function: Function, flat: Tensor) -> None:
        """Replace every matrix of all ranks' ``flat`` by the function of it. Every rank must call it."""
        for r in self.whole:
            self._replace([r.of(flat)], r.parameter, function)
        for exchanged in self.rounds:
            own = [r for to_rank in exchanged.sent for r in to_rank]
            parts = [part for of_rank in exchanged.received for part in of_rank]
            going = [sum(r.count for r in to_rank) for to_rank in exchanged.sent]
            coming = [sum(part.count for part in of_rank) for of_rank in exchanged.received]
            there = torch.cat([flat[:0], *(r.of(flat) for r in own)]).to(self.device)
            here = there.new_empty(sum(coming))
            dist.all_to_all_single(here, there, coming, going)
            pieces: dict[str, list[tuple[int, Tensor]]] = {}
            for part, piece in zip(parts, here.split([part.count for part in parts]), strict=True):
                pieces.setdefault(part.matrix, []).append((part.start, piece))
            for matrix, of_matrix in pieces.items():
                self._replace([piece for _, piece in sorted(of_matrix, key=lambda p: p[0])], matrix, function)
            dist.all_to_all_single(there, here, going, coming)
            for r, piece in zip(own, there.split([r.count for r in own]), strict=True):
                r.of(flat).copy_(piece)

    def _replace(self, pieces: list[Tensor], matrix: str, function: Function) -> None:
        """In place, the pieces of a matrix in their order."""
        whole = torch.cat(pieces).to(self.device).view(self.shapes[matrix][0], -1)
        for piece, result in zip(pieces, function(whole).flatten().split([len(p) for p in pieces]), strict=True):
            piece.copy_(result)
