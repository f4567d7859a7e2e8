"""Distances between two sets of images by their features, and the sums they need: float64, no I/O.

Frechet distance (Heusel et al. 2017), kernel distance (Binkowski et al. 2018), precision and recall (Kynkaanniemi et
al. 2019), Inception Score (Salimans et al. 2016).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fdtrain.randomness import Purpose, stream

SUBSETS = 100
"""Of the features, over which the kernel distance is a mean."""
NEIGHBOUR = 3
"""The k of precision and recall: an image's neighbourhood reaches to its k-th nearest neighbour."""


@dataclass(frozen=True)
class Gaussian:
    """Mean ``(dims,)`` and covariance ``(dims, dims)`` of features, float64."""

    mean: Tensor
    covariance: Tensor


class FeatureMoments:
    """The sums over features ``(n, dims)`` that their mean and covariance are computed from.

    Features are of about unit size, so float64 sums lose nothing that a distance would show.
    """

    def __init__(self, dims: int, device: torch.device | str = "cpu"):
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.total = torch.zeros(dims, dtype=torch.float64, device=device)
        self.outer = torch.zeros(dims, dims, dtype=torch.float64, device=device)

    def add(self, features: Tensor) -> None:
        features = features.double()
        self.count += len(features)
        self.total += features.sum(0)
        self.outer.addmm_(features.T, features)

    @property
    def sums(self) -> tuple[Tensor, ...]:
        return self.count, self.total, self.outer

    def gaussian(self) -> Gaussian:
        """With the unbiased covariance; of one image alone, zero."""
        mean = self.total / self.count
        return Gaussian(mean, (self.outer - torch.outer(self.total, mean)) / (self.count - 1).clamp(min=1))


class ClassScores:
    """What the Inception Score needs of class probabilities ``(n, classes)``, by tenths of the images.

    Args:
        images: that will be added in all; image ``i`` belongs to part ``10 i / images``.
    """

    PARTS = 10

    def __init__(self, classes: int, images: int, device: torch.device | str = "cpu"):
        self.images = images
        self.total = torch.zeros(self.PARTS, classes, dtype=torch.float64, device=device)
        self.negentropy = torch.zeros(self.PARTS, dtype=torch.float64, device=device)
        self.count = torch.zeros(self.PARTS, dtype=torch.float64, device=device)

    def add(self, first: int, probabilities: Tensor) -> None:
        """Probabilities of images from number ``first`` on."""
        p = probabilities.double()
        part = torch.arange(first, first + len(p), device=p.device) * self.PARTS // self.images
        self.total.index_add_(0, part, p)
        self.negentropy.index_add_(0, part, torch.special.xlogy(p, p).sum(1))
        self.count.index_add_(0, part, torch.ones_like(part, dtype=torch.float64))

    @property
    def sums(self) -> tuple[Tensor, ...]:
        return self.total, self.negentropy, self.count


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """``|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))``.

    The last trace is the sum of the singular values of ``A^T B`` for any ``A A^T = C_a``, ``B B^T = C_b``. Unlike the
    square root of ``C_a C_b`` that needs no full rank: there may be fewer images than features.
    """
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace()
    cross = _root(a.covariance).T @ _root(b.covariance)
    return max(0.0, (distance - 2 * torch.linalg.svdvals(cross).sum()).item())


def _root(covariance: Tensor) -> Tensor:
    """``A`` with ``A A^T = covariance``, ``(dims, rank)``."""
    values, vectors = torch.linalg.eigh(covariance)
    # What rounding leaves of a zero eigenvalue has a root that is not small.
    nonzero = values > len(values) * torch.finfo(values.dtype).eps * values.max()
    return vectors[:, nonzero] * values[nonzero].sqrt()


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """Squared maximum mean discrepancy under ``(x . y / dims + 1)^3``, unbiased: the mean over random subsets of
    1,000 features of each set, or as many as there are; ``x, y`` are ``(n, dims)``, at least two of each."""
    size, total = min(1000, len(x), len(y)), 0.0
    for subset in range(SUBSETS):
        own = stream(0, Purpose.FEATURES, 2, subset)
        a, b = (part[torch.from_numpy(own.permutation(len(part))[:size])].double() for part in (x, y))
        aa, bb, ab = _kernel(a, a), _kernel(b, b), _kernel(a, b)
        within = (aa.sum() - aa.trace() + bb.sum() - bb.trace()) / (size * (size - 1))
        total += (within - 2 * ab.mean()).item()
    return total / SUBSETS


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def precision_recall(real: Tensor, generated: Tensor) -> tuple[float, float]:
    """Share of generated images that lie in a real one's neighbourhood, and the other way round.

    Args:
        real, generated: features ``(n, dims)``, more than :data:`NEIGHBOUR` of each.
    """
    return _covered(generated, real), _covered(real, generated)


def _covered(points: Tensor, centres: Tensor, rows: int = 1024) -> float:
    """Share of ``points`` within the neighbourhood of any of ``centres``."""
    points, centres = points.double(), centres.double()
    # The nearest of all is the centre itself.
    radii = torch.cat([torch.cdist(part, centres).kthvalue(NEIGHBOUR + 1).values for part in centres.split(rows)])
    inside = [(torch.cdist(part, centres) <= radii).any(1) for part in points.split(rows)]
    return torch.cat(inside).double().mean().item()


def inception_score(scores: ClassScores) -> tuple[float, float]:
    """``exp(E KL(p(class|image) || p(class)))``, its mean over the ten parts of the images and standard deviation."""
    used = scores.count > 0
    count, total = scores.count[used], scores.total[used]
    marginal = total / count[:, None]
    values = (scores.negentropy[used] / count - torch.special.xlogy(marginal, marginal).sum(1)).exp()
    return values.mean().item(), values.std(correction=0).item()
