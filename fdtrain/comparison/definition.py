"""What is compared: variants of a base configuration, seeds, a budget; from a small YAML file."""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from fdtrain import shipped
from fdtrain.config import Config, OneOf, Section, load_config
from fdtrain.diffusion.solvers import DEFAULT, GRID, SOLVERS
from fdtrain.errors import UserError, excerpt
from fdtrain.evaluation.likelihood import TOLERANCE
from fdtrain.evaluation.samples import Sampler
from fdtrain.files import NAME
from fdtrain.networks.model import ModelSpec
from fdtrain.randomness import SEEDS
from fdtrain.strict_yaml import flattened, read_mapping, shown


class SolverAndGrid(Section):
    """A solver and its grid."""

    solver: Annotated[str, OneOf(SOLVERS)]
    grid: str = GRID

    def sampler(self, nfe: int) -> Sampler:
        """With so many evaluations, or one less where a step takes two."""
        return Sampler.within(self.solver, self.grid, nfe)

    def check(self, spec: ModelSpec, counts: tuple[int, ...]) -> None:
        """Raise UserError unless it serves a model at these numbers of evaluations."""
        for nfe in counts:
            self.sampler(nfe).with_times(spec, f"{self.solver} at {nfe} evaluations")

    def serves(self, spec: ModelSpec, counts: tuple[int, ...]) -> bool:
        with suppress(UserError):
            self.check(spec, counts)
            return True
        return False


class Variant(Section):
    """One row of the table: ``overlays`` are configuration files that are laid over the base configuration in their
    order, ``set`` are settings over them and over the comparison's own. ``sampler`` is one of its own, by which samples
    are drawn besides."""

    name: str = Field(pattern=NAME)
    overlays: tuple[Path, ...] = ()
    set: dict[str, Any] = Field(default={})
    sampler: SolverAndGrid | None = None


class Evaluation(Section):
    """How each run is evaluated; the same for all."""

    draws: int = Field(default=20, ge=2)
    """Of the bound, for each test image."""
    ode_images: int = Field(default=100, ge=0)
    """The first so many test images whose likelihood is computed by the ODE too."""
    ode_tolerance: float = Field(default=TOLERANCE, gt=0)
    nfe: tuple[int, ...] = Field(default=(10, 20, 50), min_length=1)
    """Evaluations per sample at which the Frechet distance is measured."""
    samplers: tuple[SolverAndGrid, ...] = Field(default=(SolverAndGrid(solver=DEFAULT),), min_length=1)
    """By which every variant's samples are drawn that they serve; the table shows the best of each."""
    samples: int = Field(default=500, ge=2)
    """Images of each Frechet distance, and of the variance by time."""
    strata: int = Field(default=16, ge=2)
    batches: int = Field(default=64, ge=2)
    """Training batches drawn for the variance of the batch's bound."""
    gradients: int = Field(default=16, ge=2)
    """Of them, those whose gradients are computed too."""


class Definition(Section):
    """The YAML file. Paths are relative to the working directory, as in every configuration."""

    name: str = Field(pattern=NAME)
    output: Path = Path("runs/comparisons")
    base: Path
    set: dict[str, Any] = Field(default={})
    """Settings that hold for every variant, whatever its overlays say."""
    steps: int | None = Field(default=None, ge=1)
    seconds: float | None = Field(default=None, gt=0)
    seeds: tuple[Annotated[int, Field(ge=0, lt=SEEDS)], ...] = Field(min_length=1)
    reference: str
    features: str | None = None
    """By which samples are compared, as for ``fdtrain evaluate fid``; null: learnt once from the labels."""
    evaluation: Evaluation = Evaluation()
    variants: tuple[Variant, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> "Definition":
        names = [variant.name for variant in self.variants]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"variants: the name '{twice[0]}' is given twice; each needs its own")
        if self.reference not in names:
            raise ValueError(f"reference: there is no variant '{self.reference}'; there are {', '.join(names)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: a seed is given twice; each makes one run")
        if (self.steps is None) == (self.seconds is None):
            raise ValueError("set either steps or seconds: every run has the same")
        return self

    @property
    def folder(self) -> Path:
        return self.output / self.name


@dataclass(frozen=True)
class Comparison:
    """A definition with the resolved configuration of each variant, whose name, output and seed each run sets."""

    definition: Definition
    configs: dict[str, Config]

    @property
    def folder(self) -> Path:
        return self.definition.folder

    @property
    def samplers(self) -> dict[str, SolverAndGrid]:
        """Of the variants that have one of their own."""
        return {v.name: v.sampler for v in self.definition.variants if v.sampler is not None}

    def config(self, variant: str, seed: int, **training: Any) -> Config:
        """The configuration of one run."""
        config, output = self.configs[variant], self.folder / "runs"
        changed = {"name": run_name(variant, seed), "output": output, "seed": seed}
        return config.model_copy(update={**changed, "training": config.training.model_copy(update=training)})


def run_name(variant: str, seed: int) -> str:
    return f"{variant}-seed{seed}"


def load_comparison(path: Path) -> Comparison:
    """Read a comparison and every configuration that it makes.

    Raises:
        UserError: whatever is wrong with any of them.
    """
    content = read_mapping(
        shipped.find(path, "cannot read the comparison"),
        "cannot read the comparison",
        "keys such as 'variants:' and 'seeds:'",
    )
    try:
        definition = Definition.model_validate(content)
    except ValidationError as error:
        raise UserError("; ".join(_explain(e) for e in error.errors()[:4]) + f" (in {path}).") from error
    budget = [] if definition.steps is None else [f"training.steps={definition.steps}"]
    configs = {}
    for variant in definition.variants:
        overrides = ["name=run", *overrides_of(definition.set), *overrides_of(variant.set), *budget]
        try:
            configs[variant.name] = load_config([definition.base, *variant.overlays], overrides, origin=str(path))
        except UserError as error:
            raise UserError(f"variant '{variant.name}': {error}") from error
    return Comparison(definition, configs)


def overrides_of(layer: dict[str, Any]) -> list[str]:
    """Nested sections as the overrides ``section.key=value`` that :func:`load_config` takes."""
    return [f"{name}={json.dumps(value)}" for name, value in flattened(layer).items()]


def _explain(error: Any) -> str:
    name = ".".join(excerpt(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown key '{name}'"
    if error["type"] == "missing":
        return f"{name} is missing"
    if error["type"] == "value_error":
        return ": ".join(filter(None, (name, str(error["ctx"]["error"]))))
    return f"{name}: {error['msg'][0].lower()}{error['msg'][1:]}, not {shown(error['input'])}"
