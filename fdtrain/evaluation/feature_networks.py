"""Networks whose features images are compared by (docs/evaluation.md), from files that run no Python.

inception-2015-12-05.pt    the standard Inception, TorchScript; by its features a Frechet distance is the FID
NAME.pt with NAME.json     any other network as TorchScript, and the size and normalisation of its input
a folder                   what ``fdtrain evaluate features`` has trained on a data set's labels
"""

import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as nnf
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from fdtrain import files
from fdtrain.data.fetch import Mismatch, fetch, is_remote
from fdtrain.errors import UserError
from fdtrain.evaluation import label_features
from fdtrain.evaluation.result import FeatureIdentity, invalid, write_file

HOME = os.path.expanduser("~")
# In a container a user may have no home folder.
CACHE = Path(tempfile.gettempdir() if HOME == "~" else HOME) / ".cache" / "fdtrain"
INCEPTION = "inception-2015-12-05.pt"
INCEPTION_URL = f"https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{INCEPTION}"
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
FETCH_SECONDS = 600.0
LARGEST = 1 << 27
"""Bytes to fetch at most: the Inception has 96 million."""


@dataclass(frozen=True)
class FeatureNetwork:
    """Maps of pixels ``(n, C, H, W)``, uint8 from 0 to 255, on the network's device.

    ``run`` gives features ``(n, dims)``, ``classify`` class probabilities ``(n, classes)``, if it knows classes.
    """

    identity: FeatureIdentity
    run: Callable[[Tensor], Tensor]
    classify: Callable[[Tensor], Tensor] | None = None

    @property
    def title(self) -> str:
        """What the Frechet distance of these features is called."""
        name = self.identity.name
        return "FID" if self.identity.sha256 == INCEPTION_SHA256 else f"Frechet distance ({name})"

    def describe(self) -> dict[str, Any]:
        return asdict(self.identity)


def open_features(path: str | Path | None, device: torch.device) -> FeatureNetwork:
    """The network that a path or URL stands for; None: the Inception in the cache. Raises UserError: there is none, or
    it is not of a kind that can be read safely."""
    if path is None:
        path = CACHE / INCEPTION
        if not path.is_file():
            raise UserError(
                f"no features to measure by: put {INCEPTION} (TorchScript, SHA-256 {INCEPTION_SHA256[:8]}...) from "
                f"{INCEPTION_URL} at {path}, or name a file, that URL, or a folder that "
                "fdtrain evaluate features has made from a data set's labels."
            )
    if is_remote(str(path)):
        path = _downloaded(str(path))
    path = Path(path)
    if path.is_dir():
        return _label_features(path, device)
    if path.suffix != ".pt":
        raise UserError(
            f"features {path}: no TorchScript file (.pt) and no folder of features. Pickles are not read; "
            f"the Inception as TorchScript is {INCEPTION_URL}."
        )
    try:
        digest = files.sha256(path)
        script = torch.jit.load(path, map_location=device).eval()
    except OSError as error:
        raise UserError(f"features: cannot read {path} ({error.strerror}).") from error
    except RuntimeError as error:
        raise UserError(f"features {path} is not TorchScript ({str(error).splitlines()[0]}).") from error
    if digest == INCEPTION_SHA256:
        return _inception(script, device)
    if path.name == INCEPTION:
        raise UserError(
            f"features {path}: its SHA-256 is {digest[:8]}..., the standard Inception's {INCEPTION_SHA256[:8]}... "
            f"Fetch it again from {INCEPTION_URL}."
        )
    return _scripted(script, path, digest, device)


def pixel_features(shape: tuple[int, int, int]) -> FeatureNetwork:
    """The pixels themselves as features: a distance sees what their mean and covariance see, and is no FID."""
    identity = FeatureIdentity("pixels", None, math.prod(shape), "bytes to -1..1")
    return FeatureNetwork(identity, lambda pixels: pixels.flatten(1).double() / 127.5 - 1)


def _downloaded(url: str) -> Path:
    """The Inception, from a URL that the user gave, in the cache and with the right checksum."""
    if not url.endswith(f"/{INCEPTION}"):
        raise UserError(f"features {url}: only {INCEPTION} is fetched. Fetch another network yourself.")
    path = CACHE / INCEPTION

    def check(downloaded: Path) -> None:
        if files.sha256(downloaded) != INCEPTION_SHA256:
            raise Mismatch("another checksum than the standard Inception's")

    if not path.is_file() or files.sha256(path) != INCEPTION_SHA256:
        write_file(path, lambda temporary: fetch(url, temporary, FETCH_SECONDS, LARGEST, check))
    return path


def _coloured(pixels: Tensor) -> Tensor:
    """Three channels: grey is repeated."""
    return pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels


def _inception(script: torch.jit.ScriptModule, device: torch.device) -> FeatureNetwork:
    """It takes bytes, and resizes them itself."""

    @torch.no_grad()
    def run(pixels: Tensor) -> Tensor:
        return script(_coloured(pixels), return_features=True)

    @torch.no_grad()
    def classify(pixels: Tensor) -> Tensor:
        # The Inception Score as published leaves the last layer's bias out.
        return script(_coloured(pixels), no_output_bias=True)

    dims = run(torch.zeros(1, 3, 32, 32, dtype=torch.uint8, device=device)).shape[1]
    return FeatureNetwork(
        FeatureIdentity("inception", INCEPTION_SHA256, dims, "bytes, resized by the network"), run, classify
    )


class InputFormat(BaseModel):
    """``NAME.json``: how images reach a network that somebody has exported."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=files.NAME)
    size: int = Field(ge=1)
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: str = Field("bicubic", pattern="^(bicubic|bilinear)$")


def _scripted(script: torch.jit.ScriptModule, path: Path, digest: str, device: torch.device) -> FeatureNetwork:
    """TorchScript that maps normalised images ``(n, 3, size, size)`` float32 to features ``(n, dims)``."""
    sidecar = path.with_suffix(".json")
    try:
        expected = InputFormat.model_validate_json(sidecar.read_text())
    except OSError as error:
        raise UserError(
            f"features {path}: no {sidecar.name} beside it, which says how images reach the network: "
            '{"name": ..., "size": pixels, "mean": [r, g, b], "std": [r, g, b]}, of pixels from 0 to 1.'
        ) from error
    except ValidationError as error:
        raise UserError(f"{sidecar}: {invalid(error)}.") from error
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (expected.mean, expected.std))

    @torch.no_grad()
    def run(pixels: Tensor) -> Tensor:
        x = _coloured(pixels).float() / 255
        if x.shape[2:] != (expected.size, expected.size):
            x = nnf.interpolate(x, (expected.size, expected.size), mode=expected.resize, antialias=True).clamp(0, 1)
        return script((x - mean) / std)

    try:
        features = run(torch.zeros(2, 3, expected.size, expected.size, dtype=torch.uint8, device=device))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"features {path} does not take images as {sidecar.name} says ({reason}).") from error
    if not isinstance(features, Tensor) or features.dim() != 2 or len(features) != 2:
        raise UserError(f"features {path} does not map images (n, 3, H, W) to features (n, dims).")
    scale = f"mean {list(expected.mean)}, std {list(expected.std)}"
    input_ = f"{expected.size}x{expected.size} {expected.resize} antialiased, {scale}"
    return FeatureNetwork(FeatureIdentity(expected.name, digest, features.shape[1], input_), run)


def _label_features(folder: Path, device: torch.device) -> FeatureNetwork:
    network, description, digest = label_features.load(folder)
    network.to(device)

    @torch.no_grad()
    def both(pixels: Tensor) -> tuple[Tensor, Tensor]:
        if pixels.shape[1:] != description.shape:
            raise UserError(
                f"the features '{description.name}' are of images (C, H, W) = {description.shape}, "
                f"not {tuple(pixels.shape[1:])}."
            )
        return network(pixels)

    size = "x".join(map(str, description.shape))
    identity = FeatureIdentity(description.name, digest, description.dims, f"{size}, bytes to -1..1")
    return FeatureNetwork(identity, lambda pixels: both(pixels)[0], lambda pixels: both(pixels)[1].softmax(1))
