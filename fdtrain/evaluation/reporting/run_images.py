"""Images of the data that a run was trained and evaluated on, and the bits/dim of each."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fdtrain.data.split import Split
from fdtrain.errors import UserError
from fdtrain.evaluation.reporting.result import Bound, NllResult, OdeLikelihood, split_identity
from fdtrain.evaluation.reporting.run_folder import RunFolder
from fdtrain.evaluation.run_data import open_split


@dataclass(frozen=True)
class ImageBits:
    """Bits/dim of single images ``(images,)``, in the split's order, by the ``estimate`` called ``title``."""

    result: NllResult
    title: str
    values: Tensor
    estimate: Bound | OdeLikelihood | None


class RunImages:
    """The images of a run's data, opened when they are asked for.

    Args:
        data: the present place of the data; None: where the run has recorded them.
    """

    def __init__(self, run: RunFolder, data: str | None = None):
        self.run, self.data = run, data
        self._splits: dict[str, Split] = {}

    @property
    def held_out(self) -> str:
        """The split that samples stand beside: the held-out one, if there is one."""
        settings = self.run.settings
        return str(settings.get("data.test_split", "test") or settings.get("data.train_split", "train"))

    def spread(self, count: int) -> tuple[Tensor, int]:
        """So many images ``(n, C, H, W)`` of that split, at equal distances over it, and their number of levels.

        Raises:
            UserError: they cannot be read.
        """
        split = self._split(self.held_out)
        count = min(count, len(split))
        return split.batch(range(0, len(split) // count * count, len(split) // count))[0], split.description.levels

    def chosen(self, found: NllResult, images: list[int]) -> tuple[Tensor, int]:
        """The images of these numbers of the split that was evaluated, and their number of levels.

        Raises:
            UserError: they cannot be read, or are not those that were evaluated.
        """
        split = self._split(found.split)
        if split_identity(split)["fingerprint"] != found.fingerprint:
            raise UserError(f"'{found.split}' has other shards than the result.")
        return torch.cat([split.batch(range(i, i + 1))[0] for i in images]), split.description.levels

    def _split(self, name: str) -> Split:
        if name not in self._splits:
            self._splits[name] = open_split(self.run.path, self.data, name)
        return self._splits[name]


def image_bits(run: RunFolder) -> ImageBits | None:
    """Of the evaluation of the most images; None if no evaluation has left them.

    Raises:
        UserError: the file is damaged.
    """
    results = run.of_kind(NllResult)
    for path in sorted(results, key=lambda path: results[path].images, reverse=True):
        if (file := path.with_suffix(".safetensors")).is_file():
            return _read(file, results[path])
    return None


def _read(file: Path, found: NllResult) -> ImageBits | None:
    try:
        values = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} is damaged ({error}). Delete it, and evaluate again.") from error
    for name, title in NllResult.TITLES.items():
        if name in values:
            bits = values[name].double()
            if bits.shape != (found.images,) or not bits.isfinite().all():
                raise UserError(f"{file} does not have the values of {found.images} images. Evaluate again.")
            return ImageBits(found, title, bits, getattr(found, name))
    return None
