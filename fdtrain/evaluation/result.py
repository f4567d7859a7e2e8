"""The results of evaluations: one JSON file each, with everything that defines its numbers (docs/evaluation.md).

This module alone writes and reads them. A key that a later version has added is preserved.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fdtrain import files
from fdtrain.data.split import Split
from fdtrain.errors import UserError, excerpt
from fdtrain.evaluation.wording import counted, short

VERSION = 1
"""Of the format. A file that does not name its version is of the first."""


class _Content(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True)


@dataclass(frozen=True)
class FeatureIdentity:
    """The features that a distance was measured by: ``input`` says how images reach the network, ``sha256`` is of its
    file, if it has one."""

    name: str
    sha256: str | None
    dims: int
    input: str


class Result(_Content):
    """What every result has: the weights that were evaluated, and what computed it.

    ``step`` is the training step, where it is known, and ``ema_length`` that of the average that was synthesised; None:
    the average was that of the run's ``ema.decay``. Of samples from elsewhere nothing is known of the model.
    """

    version: int = VERSION
    kind: str
    model: str | None = None
    weights_sha256: str | None = None
    step: int | None = None
    ema_length: float | None = None
    images: int
    device: str
    seconds: float


class LikelihoodEstimate(_Content):
    """A mean over images in bits/dim; its standard errors over draws and over images, where they can be had.

    ``evaluations`` of the network per image.
    """

    bits_per_dim: float
    error_draws: float | None
    error_images: float | None
    evaluations: float


class BoundEstimate(LikelihoodEstimate):
    """The evidence lower bound. ``gain`` is what importance weights won over the plain bound of the same draws."""

    draws: int
    dequantisations: int = 1
    gain: float | None = None
    error_gain: float | None = None

    @property
    def how(self) -> list[str]:
        """Clauses on what it was computed with."""
        parts = [f"{counted(self.draws, 'draw')} per image", *_repeated(self.dequantisations)]
        if self.gain is not None:
            error = "" if self.error_gain is None else f" +- {self.error_gain:.4f}"
            parts.append(f"{self.gain:.4f}{error} below the plain bound of the same draws")
        return parts


class OdeEstimate(LikelihoodEstimate):
    """The likelihood by the probability-flow ODE; ``nfe`` is the mean number of evaluations per dequantisation.

    ``solver`` says what ``tolerance`` is of: results from before it was recorded are of one in ``phi``.
    """

    solver: str = "Dormand-Prince in phi"
    dequantisation: str = "uniform"
    dequantisations: int
    tolerance: float
    trace: str
    probes: int | None
    nfe: float

    @property
    def how(self) -> list[str]:
        """Clauses on what it was computed with."""
        solved = f"{short(self.solver)} at {self.tolerance:g}, NFE {self.nfe:.0f}, {short(self.trace)} trace"
        return [f"{short(self.dequantisation)} dequantisation", *_repeated(self.dequantisations), solved]


def _repeated(dequantisations: int) -> list[str]:
    return [f"K = {dequantisations}"] if dequantisations > 1 else []


class SplitIdentity(_Content):
    """The split that a result was computed on; the fingerprint is of its shards' checksums."""

    dataset: str
    source: str
    split: str
    fingerprint: str
    images_in_split: int
    levels: int

    @property
    def split_text(self) -> str:
        """Data set and split, which files from elsewhere have named, for the console."""
        return f"{excerpt(self.dataset)}/{excerpt(self.split)}"


class NllResult(SplitIdentity, Result):
    """Bits/dim of a split, by each method that was asked for."""

    TITLES: ClassVar[dict[str, str]] = {
        "elbo": "ELBO",
        "elbo_closed": "ELBO, closed interval",
        "elbo_importance": "ELBO, importance-weighted",
        "ode": "ODE",
        "ode_importance": "ODE, importance-weighted",
    }

    bound: str = "closed interval"
    dequantisation: str
    dtype: str
    seed: int
    batch: int
    elbo: BoundEstimate | None = None
    elbo_closed: BoundEstimate | None = None
    elbo_importance: BoundEstimate | None = None
    ode: OdeEstimate | None = None
    ode_importance: OdeEstimate | None = None

    @property
    def coverage(self) -> str:
        """How many images of which split were evaluated."""
        whole = f"{counted(self.images_in_split, 'image')} of {self.split_text}"
        return f"all {whole}" if self.images == self.images_in_split else f"the first {self.images:,} of {whole}"

    def estimates(self) -> list[tuple[str, BoundEstimate | OdeEstimate]]:
        """The estimates that there are, with their titles."""
        values = ((title, getattr(self, name)) for name, title in self.TITLES.items())
        return [(title, value) for title, value in values if value is not None]


class Distances(_Content):
    """Of one set of samples, or means over sets; None where a distance cannot be had."""

    value: float
    kid: float | None
    precision: float | None
    recall: float | None
    inception_score: float | None


class ReferenceIdentity(SplitIdentity):
    """What samples were compared with: ``images`` of the split, with their mirror images if ``flip``.

    The features of the first ``feature_images`` serve the distances that moments do not give.
    """

    shape: tuple[int, int, int]
    images: int
    flip: bool
    feature_images: int = Field(alias="kept")
    features: FeatureIdentity

    @property
    def text(self) -> str:
        mirrored = " with their mirror images" if self.flip else ""
        return f"{self.images:,} images of {self.split_text}{mirrored}"


class ReferenceFile(_Content):
    """What samples were compared with: statistics in a file of another program, which does not say what of."""

    file: str
    sha256: str

    @property
    def text(self) -> str:
        return f"the statistics in {excerpt(self.file)} (SHA-256 {self.sha256[:8]}...)"


class FrechetResult(Distances, Result):
    """Distances of sets of samples to a split; ``values`` are the Frechet distances of the sets, ``spread`` their
    standard deviation. It is ``unfinished`` while sets are missing."""

    name: str
    samples: list[str] | None = None
    solver: str | None
    grid: str | list[float] | None
    steps: int | None
    nfe: int | None
    label: int | None
    guidance: float | None
    seeds: list[int | None]
    reference: ReferenceIdentity | ReferenceFile
    features: FeatureIdentity
    feature_images: int = Field(alias="kept")
    values: list[float]
    spread: float | None
    sets: list[Distances]
    unfinished: bool


class Strata(_Content):
    """The bound's integral and the variance of one image's estimate, by strata of time with the given edges."""

    images: int
    density: str
    t_edges: list[float]
    mean: list[float]
    error: list[float]
    variance: list[float]
    variance_within: float
    variance_iid: float


class CurvePoint(_Content):
    """Samples of one solver and grid at one number of evaluations: their distance to the data, and the root mean
    square difference to the reference, for deterministic solvers; means over the seeds."""

    solver: str
    grid: str
    nfe: int
    distance: float
    distance_by_seed: list[float] | None = None
    rms: float | None
    rms_by_seed: list[float] | None = None


class CurveReference(_Content):
    """The fine solution of the ODE that deterministic solvers are compared with."""

    solver: str
    grid: str
    nfe: int


class CurveResult(SplitIdentity, Result):
    """The data of the curves; ``distance`` is the title of the points' distances."""

    seed: int
    seeds: list[int] = []
    batch: int
    strata: Strata
    distance: str
    features: FeatureIdentity
    reference: CurveReference
    points: list[CurvePoint]


class BatchVariance(_Content):
    """Of the bound's estimate by one training batch, (bits/dim)^2, over so many batches; and ``by_time`` of one
    image's, by parts of the time's quantile with the given edges (None: too few draws)."""

    batches: int
    variance: float
    t_edges: list[float]
    by_time: list[float | None]


class GradientNoise(_Content):
    """Of one training batch's gradient, nats per dimension and unit of the weights, over so many batches.

    ``noise`` is the root of the trace of its covariance, ``norm`` the root mean square of its norm, ``noise_scale``
    the trace over the squared norm of the mean, in batches.
    """

    gradients: int
    noise: float
    norm: float
    noise_scale: float | None


class FrechetPoint(_Content):
    nfe: int
    distance: float


class SamplerPoints(_Content):
    """Distances by one solver and grid."""

    solver: str
    grid: str
    points: list[FrechetPoint]


class TrainingNoise(SplitIdentity, Result):
    """What a comparison measures of a run besides its likelihoods, on images of its training split; distances by the
    samplers that all have, and by the variant's own, if it has one."""

    seed: int
    time_sampling: str
    batch: BatchVariance
    gradient: GradientNoise
    distance: str
    features: FeatureIdentity
    samplers: list[SamplerPoints]
    own_sampler: SamplerPoints | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_an_earlier_version(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Which had one sampler for all."""
        if "points" not in content:
            return content
        rest, one = dict(content), SamplerPoints.model_fields
        return {"samplers": [{key: rest.pop(key, None) for key in one}], **rest}


class EmaPoint(_Content):
    """The average of one relative length; that of the run's ``ema.decay`` has none.

    ``profile_error`` is that of the synthesis. ``difference`` are the bits/dim less those of the run's own average,
    image by image with the same draws, and ``error_difference`` its standard error over images.
    """

    length: float | None
    profile_error: float
    weights_sha256: str
    bits_per_dim: float
    error_images: float | None
    difference: float
    error_difference: float | None
    distance: float | None = None


class EmaResult(SplitIdentity, Result):
    """Averages of several lengths side by side; ``distance`` is the title of the points' distances of ``samples``
    images each, drawn as ``drawing`` says, if any were asked for."""

    bound: str
    seed: int
    batch: int
    draws: int
    tracked: list[float]
    snapshots: int
    points: list[EmaPoint]
    distance: str | None = None
    features: FeatureIdentity | None = None
    samples: int | None = None
    drawing: dict[str, Any] | None = None


RESULTS: dict[str, type[Result]] = {
    "nll": NllResult,
    "ema": EmaResult,
    "frechet": FrechetResult,
    "curve": CurveResult,
    "noise": TrainingNoise,
}


def split_identity(split: Split) -> dict[str, Any]:
    """The keys that every result has of the split it was computed on; the fingerprint is of its shards' checksums."""
    shards = split.description.splits[split.name]
    fingerprint = hashlib.sha256("".join(sha256 for *_, sha256 in shards.identities()).encode()).hexdigest()
    return {
        "dataset": split.description.name,
        "source": split.description.source,
        "split": split.name,
        "fingerprint": fingerprint,
        "images_in_split": len(split),
        "levels": split.description.levels,
    }


def write(result: Result | dict[str, Any], path: Path) -> None:
    """Write a result, or another record, as :func:`write_file` does."""
    content = result.model_dump(by_alias=True, exclude_unset=True) if isinstance(result, Result) else result
    write_file(path, lambda temporary: temporary.write_text(json.dumps(content, indent=1) + "\n"))


def read(path: Path) -> Result | None:
    """Read a result; None if the file holds another kind of record.

    Raises:
        UserError: the file is damaged, or of a later version.
    """
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise UserError(f"{path} is damaged (not an object). Delete it, and make it again.")
        if content.get("kind") not in RESULTS:
            return None
        if content.get("version", VERSION) != VERSION:
            found = f"version {content['version']}, this fdtrain reads {VERSION}"
            raise UserError(f"{path}: {found}. Update it, or evaluate again.")
        return RESULTS[content["kind"]].model_validate(content)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}).") from error
    except (ValueError, TypeError, RecursionError) as error:
        reason = invalid(error) if isinstance(error, ValidationError) else error
        raise UserError(f"{path} is damaged ({reason}). Delete it, and make it again.") from error


def defined_by(path: Path, definition: dict[str, Any]) -> Result | None:
    """The result in a file, if it is there, undamaged, and of all that is in this definition."""
    try:
        found = read(path) if path.is_file() else None
    except UserError:
        return None
    content = found.model_dump(by_alias=True, mode="json") if found else {}
    same = all(content.get(key) == value for key, value in json.loads(json.dumps(definition)).items())
    return found if same else None


def invalid(error: ValidationError) -> str:
    """The first of pydantic's complaints as a clause."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'content'}: {first['msg']}"


def write_values(values: dict[str, Tensor], path: Path) -> None:
    """Write values of each image as safetensors, as :func:`write_file` does."""
    tensors = {name: value.contiguous() for name, value in values.items()}
    write_file(path, lambda temporary: save_file(tensors, temporary))


def write_file(path: Path, write_to: Callable[[Path], Any]) -> None:
    """:func:`fdtrain.files.write_atomically` of a file that the user asked for.

    Raises:
        UserError: it cannot be written.
    """
    try:
        files.write_atomically(path, write_to)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path} ({getattr(error, 'strerror', None) or error}).") from error
