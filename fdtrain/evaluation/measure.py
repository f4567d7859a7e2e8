"""Features of a set of images, streamed over the ranks: what every distance is computed from.

Images go in chunks of a batch, chunk after chunk to the ranks in turn, so that a chunk is the same computation on any
number of processes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fdtrain import distributed
from fdtrain.errors import UserError
from fdtrain.evaluation.feature_networks import FeatureNetwork
from fdtrain.evaluation.frechet import ClassScores, FeatureMoments
from fdtrain.evaluation.image_sets import PixelSet

FIRST_FEATURES = 10_000
"""The number of first images of a set whose features are stored, for the distances that moments do not give."""


@dataclass(frozen=True)
class Measured:
    """Of a whole set, on every rank: moments, the first features ``(k, dims)`` float32, class scores if asked for."""

    moments: FeatureMoments
    first_features: Tensor
    scores: ClassScores | None


def own_chunks(images: range, batch: int) -> Iterator[range]:
    """This rank's chunks of ``images``."""
    for i in range(distributed.rank() * batch, len(images), distributed.world_size() * batch):
        yield images[i : i + batch]


def measure(
    network: FeatureNetwork,
    images: PixelSet,
    count: int,
    batch: int,
    device: torch.device,
    scored: bool = False,
    progress: Callable[[int], object] = lambda images: None,
) -> Measured:
    """Features of the first ``count`` images. Every rank must call it.

    Args:
        scored: gather class scores too, if the network knows classes.
        progress: hears of this rank's images.

    Raises:
        UserError: there are fewer images, one cannot be read, or a feature is not finite.
    """
    if images.count < count:
        raise UserError(f"{images.name} holds {images.count} images, {count} are asked for.")
    moments = FeatureMoments(network.identity.dims, device)
    first_features = torch.zeros(min(count, FIRST_FEATURES), network.identity.dims, device=device)
    classify = network.classify if scored else None
    scores = ClassScores(_classes(classify, images, device), count, device) if classify else None
    for chunk in own_chunks(range(count), batch):
        pixels = images.batch(chunk).to(device)
        features = network.run(pixels)
        moments.add(features)
        if chunk.start < len(first_features):
            first_features[chunk.start : chunk.stop] = features[: len(first_features) - chunk.start]
        if classify and scores:
            scores.add(chunk.start, classify(pixels))
        progress(len(chunk))
    moments.reduce(distributed.all_reduce_sum)
    if scores:
        scores.reduce(distributed.all_reduce_sum)
    if not torch.isfinite(moments.total).all():
        raise UserError(f"the features '{network.identity.name}' of {images.name} are not finite.")
    return Measured(moments, distributed.all_reduce_sum(first_features), scores)


def _classes(classify: Callable[[Tensor], Tensor], images: PixelSet, device: torch.device) -> int:
    return classify(torch.zeros(1, *images.shape, dtype=torch.uint8, device=device)).shape[1]
