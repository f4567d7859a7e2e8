"""A model's state cut into parts, one file a rank, readable by any number of ranks.

A *fragment* is a range of one parameter's elements, flat. A part is a safetensors file of fragments; its keys are
``kind/parameter/start``, so what a rank needs is found by arithmetic whatever wrote it: this is the mapping on
which DeepSpeed's universal checkpoints rest, without their conversion step and without pickles. An index says which
part has which fragments, so that a rank opens those that it reads.
"""

import hashlib
import json
import os
import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import NonNegativeInt, PositiveInt
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fdtrain.errors import UserError, excerpt

WEIGHT, AVERAGE = "weight", "average"
FIRST_MOMENT, SECOND_MOMENT, MOMENTUM = "exp_avg", "exp_avg_sq", "momentum"
"""Adam's moments, and Muon's."""

PART = re.compile(r"part_\d{5,}\.safetensors")
POWER_AVERAGE = re.compile(rf"{AVERAGE}_(0\.\d+)")


def power_average(length: float) -> str:
    """The kind of a power-function average of this relative length (profiles.py)."""
    return f"{AVERAGE}_{length!r}"


@dataclass(frozen=True)
class Fragment:
    """``tensor`` holds elements ``start`` to ``start + len(tensor)`` of a parameter, float32, flat."""

    kind: str
    parameter: str
    start: int
    tensor: Tensor

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.parameter}/{self.start}"


def part_name(rank: int) -> str:
    return f"part_{rank:05d}.safetensors"


class Run(NamedTuple):
    """``pieces`` fragments of ``size`` elements each, one after another from element ``start`` on: the first is in the
    part number ``part``, each other in the next part. So ZeRO cuts a parameter."""

    start: NonNegativeInt
    size: PositiveInt
    part: NonNegativeInt
    pieces: PositiveInt

    @property
    def end(self) -> int:
        return self.start + self.size * self.pieces


Place = tuple[str, int, int]
"""Of a fragment: ``kind/parameter``, the first element and their number."""
Index = dict[str, list[Run]]
"""By ``kind/parameter``, in the order of the elements."""


def index_of(parts: Iterable[tuple[int, Iterable[Place]]]) -> Index:
    """The index of parts, given in the order of their numbers."""
    index: Index = {}
    for part, fragments in parts:
        for name, start, size in sorted(fragment for fragment in fragments if fragment[2]):
            runs = index.setdefault(name, [])
            last = runs[-1] if runs else None
            if last is not None and (start, size, part) == (last.end, last.size, last.part + last.pieces):
                runs[-1] = last._replace(pieces=last.pieces + 1)
            else:
                runs.append(Run(start, size, part, 1))
    for runs in index.values():
        runs.sort()
    return index


def index_within(index: Index, parts: range) -> Index:
    """What an index says of some of the parts."""
    found: Index = {}
    for name, runs in index.items():
        for run in runs:
            first, last = max(run.part, parts.start), min(run.part + run.pieces, parts.stop)
            if first < last:
                start = run.start + (first - run.part) * run.size
                found.setdefault(name, []).append(Run(start, run.size, first, last - first))
    return found


def fragments_of(path: Path) -> list[Place]:
    """The fragments of a part, as its header has them.

    Raises:
        UserError: it is no part.
    """
    part, found = _opened(path), []
    for key in part.keys():  # noqa: SIM118 (no mapping)
        name, _, start = key.rpartition("/")
        if name.count("/") != 1 or not start.isdecimal():
            raise UserError(f"cannot read {path} (it holds '{excerpt(key)}'). Resume from another checkpoint.")
        found.append((name, int(start), prod(part.get_slice(key).get_shape())))
    return found


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path} ({error}). Resume from another checkpoint.") from error


def write_part(path: Path, fragments: Iterable[Fragment]) -> dict[str, Any]:
    """Write fragments that lie on the CPU, in the safetensors format, and flush them to the disk.

    The library's own writer would copy every tensor first and hold the interpreter meanwhile; and the checksum
    would need a second reading.

    Returns:
        The file's ``bytes`` and ``sha256``, whether it is :func:`finite`, and the places of its ``fragments``.
    """
    fragments = list(fragments)
    header, offset = {}, 0
    for fragment in fragments:
        end = offset + fragment.tensor.numel() * 4
        header[fragment.key] = {"dtype": "F32", "shape": [len(fragment.tensor)], "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in [len(text).to_bytes(8, "little"), text, *(f.tensor.numpy() for f in fragments)]:
            digest.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
        return {
            "bytes": file.tell(),
            "sha256": digest.hexdigest(),
            "finite": all(map(_finite, fragments)),
            "fragments": [(f"{f.kind}/{f.parameter}", f.start, len(f.tensor)) for f in fragments],
        }


def _finite(fragment: Fragment) -> bool:
    """Weights and averages must be finite. Moments may overflow where weights do not, but not be NaN, which the next
    step makes the weights too."""
    if _is_moment(fragment.kind):
        return not torch.isnan(fragment.tensor).any()
    return bool(torch.isfinite(fragment.tensor).all())


def _is_moment(kind: str) -> bool:
    return kind in (FIRST_MOMENT, SECOND_MOMENT, MOMENTUM)


def finite(path: Path) -> bool:
    """Whether all weights and averages of a part are finite, and no moment is NaN, read one fragment at a time."""
    part = _opened(path)
    return all(
        _finite(Fragment(key.partition("/")[0], key, 0, part.get_tensor(key)))
        for key in part.keys()  # noqa: SIM118 (no mapping)
    )


class FragmentReader:
    """The fragments of a checkpoint folder, whoever wrote them. A part is opened when something of it is read."""

    def __init__(self, folder: Path, index: Index):
        self.folder, self.index = folder, index
        self.opened: dict[int, safe_open] = {}
        """By their numbers, the parts of which something was read."""

    def read(self, kind: str, parameter: str, start: int, count: int) -> Tensor:
        """Elements ``start`` to ``start + count`` of a parameter's weights, averages or moments, float32, flat.

        Raises:
            UserError: the parts do not hold them all, or one of them cannot be read.
        """
        name, pieces, at, end = f"{kind}/{parameter}", [], start, start + count
        runs = self.index.get(name, [])
        for run in runs[max(0, bisect_right(runs, start, key=lambda run: run.start) - 1) :]:
            while run.start <= at < min(end, run.end):
                nth = (at - run.start) // run.size
                first = run.start + nth * run.size
                last = min(end, first + run.size)
                pieces.append(self._piece(run.part + nth, f"{name}/{first}", at - first, last - first))
                at = last
        if at < end:
            raise UserError(f"{self.folder} lacks elements {at} to {end} of {kind} of {parameter}: parts are missing.")
        return torch.cat(pieces) if pieces else torch.empty(0)

    def _piece(self, part: int, key: str, start: int, stop: int) -> Tensor:
        if part not in self.opened:
            self.opened[part] = _opened(self.folder / part_name(part))
        try:
            return self.opened[part].get_slice(key)[start:stop]
        except SafetensorError as error:
            path = self.folder / part_name(part)
            raise UserError(f"{path} does not hold {key} ({error}). Resume from another checkpoint.") from error

    def whole(self, kind: str, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
        """All of ``kind``, by parameter."""
        return {name: self.read(kind, name, 0, shape.numel()).view(shape) for name, shape in shapes.items()}

    @property
    def kinds(self) -> set[str]:
        return {name.partition("/")[0] for name in self.index}

    def lengths(self) -> list[float]:
        """Relative lengths of the power-function averages that there are, rising."""
        return sorted({float(found[1]) for kind in self.kinds if (found := POWER_AVERAGE.fullmatch(kind))})

    def lacking(self, sizes: dict[str, int]) -> str | None:
        """What is missing of a model with parameters of these sizes: of each kind that there is, and of the moments
        that each parameter has; None if nothing is."""
        kinds = self.kinds
        for parameter, size in sizes.items():
            own = {kind for kind in kinds if not _is_moment(kind) or f"{kind}/{parameter}" in self.index}
            if any(map(_is_moment, kinds)):
                own |= {WEIGHT} | ({MOMENTUM} if MOMENTUM in own else {FIRST_MOMENT, SECOND_MOMENT})
            for kind in sorted(own):
                at = 0
                for run in self.index.get(f"{kind}/{parameter}", []):
                    if run.start > at:
                        break
                    at = max(at, run.end)
                if at != size:
                    return f"it lacks elements of {kind} of {parameter}"
        return None if kinds else "it lacks all elements"
