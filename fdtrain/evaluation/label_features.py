"""Learn features from a data set's labels, to measure distances by where Inception says nothing.

    fdtrain evaluate features data/digits export/digits-features

A small classifier, trained in seconds to minutes: weights as safetensors, and beside them what they were made of.
Distances by them compare runs on one data set; they are no FID.
"""

import argparse
import hashlib
import sys
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as nnf
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn
from tqdm import trange

from fdtrain.data.split import Split
from fdtrain.distributed import chunks
from fdtrain.errors import UserError, excerpt
from fdtrain.evaluation.result import invalid, split_identity, write, write_values
from fdtrain.evaluation.samples import to_pixels
from fdtrain.randomness import Purpose, stream, torch_seed

DESCRIPTION, WEIGHTS = "features.json", "features.safetensors"
VERSION = 1
DIMS = 64
EPOCHS, BATCH, RATE, DECAY = 20, 64, 2e-3, 1e-2
PRESENTATIONS = 200_000
"""Images that are shown at most, so that a large data set has fewer epochs."""
MOST_IMAGES = 100_000
"""Of a split that are trained on: they are all in memory."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", help="a packed data set with labels")
    parser.add_argument("folder", type=Path, help="where the two files go")
    parser.add_argument("--split", default="train", help="whose labels are learnt (default: train)")


def run(arguments: argparse.Namespace) -> None:
    split = Split(arguments.data, arguments.split)
    network, description = train(split)
    save(network, description, arguments.folder)
    shares = [f"{description.accuracy:.1%} of {split.name}"]
    for other in split.description.splits:
        if other != split.name and split.description.images(other):
            shares.append(f"{accuracy(network, Split(arguments.data, other)):.1%} of {other}")
    learnt = f"{excerpt(description.name)}, {description.dims} features"
    print(f"{arguments.folder}: {learnt}, labels right: {', '.join(shares)}")


class ClassifierDescription(BaseModel):
    """What the features were made of. ``accuracy`` is of the classifier, on the images it was trained on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    dataset: str
    split: str
    fingerprint: str
    images: int
    channels: int
    size: int
    classes: list[str]
    epochs: int
    accuracy: float
    dims: int = DIMS
    version: Literal[1] = VERSION

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.size, self.size


class Classifier(nn.Module):
    """Convolutions that halve the image down to 4x4, a layer of ``DIMS`` features, and the classes."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int, size: int, classes: int):
        super().__init__()
        width, layers = 32, [nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU()]
        while size > 4:
            layers += [nn.Conv2d(width, min(2 * width, 128), 3, stride=2, padding=1), nn.ReLU()]
            width, size = min(2 * width, 128), (size + 1) // 2
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.features = nn.Linear(width * size * size, DIMS)
        self.classes = nn.Linear(DIMS, classes)
        # Of the features over the images that were learnt from: distances are in units of these deviations.
        self.register_buffer("mean", torch.zeros(DIMS))
        self.register_buffer("deviation", torch.ones(DIMS))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels ``(n, C, H, W)`` uint8 to standardised features ``(n, DIMS)`` and logits ``(n, classes)``."""
        features = self.features(self.body(pixels.float() / 127.5 - 1))
        return (features - self.mean) / self.deviation, self.classes(features.relu())


def train(split: Split) -> tuple[Classifier, ClassifierDescription]:
    """Learn the labels of a split; the same features whenever it is done on the same kind of machine.
    Raises UserError: the split has no labels."""
    data = split.description
    pixels, labels = _images(split)
    epochs = max(1, min(EPOCHS, PRESENTATIONS // len(pixels)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(0, Purpose.FEATURES, 0))
        network = Classifier(data.channels, data.size, len(data.classes))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # Else the sums, and so the weights, depend on the number of cores.
    try:
        _fit(network, pixels, labels, epochs)
    finally:
        torch.set_num_threads(threads)
    network.eval().requires_grad_(False)
    identity = {key: split_identity(split)[key] for key in ("dataset", "split", "fingerprint")}
    image = {"channels": data.channels, "size": data.size, "classes": data.classes}
    learnt = {"images": len(pixels), "epochs": epochs, "accuracy": accuracy(network, split)}
    return network, ClassifierDescription(name=f"{data.name}-features", **identity, **image, **learnt)


def _fit(network: Classifier, pixels: Tensor, labels: Tensor, epochs: int) -> None:
    optimiser = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
    for epoch in trange(epochs, desc="learning features", unit="epoch", disable=not sys.stderr.isatty()):
        order = torch.from_numpy(stream(0, Purpose.FEATURES, 1, epoch).permutation(len(pixels)))
        for chosen in order.split(BATCH):
            loss = nnf.cross_entropy(network(pixels[chosen])[1], labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with torch.no_grad():
        features = torch.cat([network(part)[0] for part in pixels.split(1000)])
        network.mean.copy_(features.mean(0))
        network.deviation.copy_(features.std(0).clamp(min=1e-6))


def accuracy(network: Classifier, split: Split) -> float:
    """Share of a split's labels that the classifier gets right."""
    pixels, labels = _images(split)
    with torch.no_grad():
        right = [(network(p)[1].argmax(1) == l).sum() for p, l in zip(pixels.split(1000), labels.split(1000))]
    return (torch.stack(right).sum() / len(labels)).item()


def _images(split: Split) -> tuple[Tensor, Tensor]:
    """The first pixels and labels."""
    parts = [split.batch(part) for part in chunks(range(min(len(split), MOST_IMAGES)), 1000)]
    if not split.description.classes or not parts or any((labels < 0).any() for _, labels in parts):
        raise UserError(f"split '{split.name}' of '{split.description.name}' has no labels to learn features from.")
    levels, labels = (torch.cat(column) for column in zip(*parts))
    return to_pixels(levels, split.description.levels), labels


def save(network: Classifier, description: ClassifierDescription, folder: Path) -> None:
    """Write weights, then what they are. Raises UserError: the folder cannot be written."""
    write_values(network.state_dict(), folder / WEIGHTS)
    write(description.model_dump(), folder / DESCRIPTION)


def load(folder: Path) -> tuple[Classifier, ClassifierDescription, str]:
    """The network, what it is, and its weights' SHA-256. Raises UserError: the folder holds no features, or broken
    ones."""
    try:
        description = ClassifierDescription.model_validate_json((folder / DESCRIPTION).read_bytes())
        data = (folder / WEIGHTS).read_bytes()
        network = Classifier(description.channels, description.size, len(description.classes))
        network.load_state_dict(load_tensors(data))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = invalid(error) if isinstance(error, ValidationError) else str(error).splitlines()[0]
        raise UserError(
            f"{folder} holds no sound features ({reason}). fdtrain evaluate features DATA {folder} makes some."
        ) from error
    return network.eval().requires_grad_(False), description, hashlib.sha256(data).hexdigest()
