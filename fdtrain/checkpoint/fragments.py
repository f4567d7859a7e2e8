"""A model's state cut into parts, one file a rank, readable by any number of ranks.

A *fragment* is a run of one parameter's elements, flat. A part is a safetensors file of fragments; its keys are
``kind/parameter/start``, so what a rank needs is found by arithmetic whatever wrote it: this is the mapping on
which DeepSpeed's universal checkpoints rest, without their conversion step and without pickles.
"""

import hashlib
import json
import os
import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fdtrain.errors import UserError

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


def write_part(path: Path, fragments: Iterable[Fragment]) -> dict[str, int | str | bool]:
    """Write fragments that lie on the CPU, in the safetensors format, and flush them to the disk.

    The library's own writer would copy every tensor first and hold the interpreter meanwhile; and the checksum
    would need a second reading.

    Returns:
        The file's ``bytes`` and ``sha256``, and whether it is ``finite``, as :meth:`FragmentReader.finite` says.
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
    with path.open("wb", buffering=0) as file:
        for piece in [len(text).to_bytes(8, "little"), text, *(f.tensor.numpy().data for f in fragments)]:
            view = memoryview(piece).cast("B")
            while view:
                view = view[_write_some(file, view, digest) :]
        os.fsync(file.fileno())
        return {"bytes": file.tell(), "sha256": digest.hexdigest(), "finite": all(map(_finite, fragments))}


def _write_some(file: FileIO, view: memoryview, digest: Any) -> int:
    """Write the beginning of ``view``; returns how many bytes of it."""
    count = file.write(view[: 2**24])
    digest.update(view[:count])
    return count


def _finite(fragment: Fragment) -> bool:
    """Weights and averages must be finite. Moments may overflow where weights do not, but not be NaN, which the next
    step makes the weights too."""
    if _is_moment(fragment.kind):
        return not torch.isnan(fragment.tensor).any()
    return bool(torch.isfinite(fragment.tensor).all())


def _is_moment(kind: str) -> bool:
    return kind in (FIRST_MOMENT, SECOND_MOMENT, MOMENTUM)


class FragmentReader:
    """The fragments of a checkpoint folder, whoever wrote them.

    Args:
        parts: names of the files that belong to it; no other file is opened.

    Raises:
        UserError: a file is not what it should be.
    """

    def __init__(self, folder: Path, parts: Iterable[str]):
        self.folder = folder
        self.locations: dict[tuple[str, str], list[tuple[int, str, safe_open]]] = {}
        for name in parts:
            path = folder / name
            try:
                part = safe_open(path, "pt")
                for key in part.keys():  # noqa: SIM118 (no mapping)
                    kind, parameter, start = key.split("/")
                    self.locations.setdefault((kind, parameter), []).append((int(start), key, part))
            except (OSError, SafetensorError, ValueError) as error:
                raise UserError(f"cannot read {path} ({error}). Resume from another checkpoint.") from error
        for locations in self.locations.values():
            locations.sort(key=lambda location: location[0])

    def read(self, kind: str, parameter: str, start: int, count: int) -> Tensor:
        """Elements ``start`` to ``start + count`` of a parameter's weights, averages or moments, float32, flat.

        Raises:
            UserError: the parts do not hold them all.
        """
        locations = self.locations.get((kind, parameter), [])
        pieces, at, end = [], start, start + count
        index = max(0, bisect_right(locations, start, key=lambda location: location[0]) - 1)
        for first, key, part in locations[index:]:
            piece = part.get_slice(key)
            last = first + piece.get_shape()[0]
            if at >= end or first > at:
                break
            if last > at:
                pieces.append(piece[at - first : min(end, last) - first])
                at = min(end, last)
        if at < end:
            raise UserError(f"{self.folder} lacks elements {at} to {end} of {kind} of {parameter}: parts are missing.")
        return torch.cat(pieces) if pieces else torch.empty(0)

    def whole(self, kind: str, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
        """All of ``kind``, by parameter."""
        return {name: self.read(kind, name, 0, shape.numel()).view(shape) for name, shape in shapes.items()}

    def lengths(self) -> list[float]:
        """Relative lengths of the power-function averages that there are, rising."""
        return sorted({float(found[1]) for kind, _ in self.locations if (found := POWER_AVERAGE.fullmatch(kind))})

    def finite(self) -> bool:
        """Whether all weights and averages are finite, and no moment is NaN, read one fragment at a time."""
        return all(
            _finite(Fragment(kind, parameter, start, part.get_tensor(key)))
            for (kind, parameter), locations in self.locations.items()
            for start, key, part in locations
        )

    def lacking(self, sizes: dict[str, int]) -> str | None:
        """What is missing of a model with parameters of these sizes: of each kind that there is, and of the moments
        that each parameter has; None if nothing is."""
        kinds = {kind for kind, _ in self.locations}
        for parameter, size in sizes.items():
            own = {kind for kind in kinds if not _is_moment(kind) or (kind, parameter) in self.locations}
            if any(map(_is_moment, kinds)):
                own |= {WEIGHT} | ({MOMENTUM} if MOMENTUM in own else {FIRST_MOMENT, SECOND_MOMENT})
            for kind in sorted(own):
                at = 0
                for start, key, part in self.locations.get((kind, parameter), []):
                    if start > at:
                        break
                    at = max(at, start + part.get_slice(key).get_shape()[0])
                if at != size:
                    return f"it lacks elements of {kind} of {parameter}"
        return None if kinds else "it lacks all elements"
