"""The configuration of a run: one class per YAML section, and the only place that knows defaults.

Units are in the names or beside them. ``training.global_batch`` counts the images of one optimiser step over
all ranks and accumulation steps, so a configuration means the same on any number of machines.
"""

import difflib
import inspect
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import core_schema

from fdtrain import plugins, shipped
from fdtrain.credentials import masked_values
from fdtrain.diffusion.clocks import DENSITIES
from fdtrain.diffusion.objective import DECODERS
from fdtrain.diffusion.predictors import INPUTS, PREDICTORS, TIMES
from fdtrain.diffusion.solvers import DEFAULT, SOLVERS
from fdtrain.diffusion.time_sampling import DRAWS
from fdtrain.diffusion.weighting import WEIGHTINGS
from fdtrain.errors import UserError, excerpt
from fdtrain.files import NAME
from fdtrain.networks import model
from fdtrain.networks.dit import SIZES
from fdtrain.networks.embeddings import TIME_EMBEDDINGS
from fdtrain.randomness import SEEDS
from fdtrain.strict_yaml import MAX_DEPTH, flattened, parse, read_mapping, shown


@dataclass(frozen=True, eq=False)
class OneOf:
    """A name out of the table that the code chooses from; plugins add to some."""

    table: Collection[str]

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def check(self, name: str) -> str:
        # In a list: what YAML gives need not be hashable.
        if name not in [*self.table]:
            *names, last = map(repr, self.table)
            raise ValueError(f"input should be {', '.join(names)} or {last}, not {shown(name)}")
        return name


Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A section of the configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _as_meant(cls, value: Any, info: ValidationInfo) -> Any:
        """A home folder, which no shell sees in YAML or behind ``KEY=``, is expanded; true is no number."""
        if isinstance(value, bool) and not isinstance(cls.model_fields[info.field_name or ""].default, bool | str):
            raise ValueError(f"input should not be {value}")
        return [_at_home(part) for part in value] if isinstance(value, list) else _at_home(value)


def _at_home(value: Any) -> Any:
    """No text but a path begins with ``~``."""
    if isinstance(value, str) and value.startswith("~"):
        value = os.path.expanduser(value)
        if value.startswith("~"):
            raise ValueError(f"there is no home folder {excerpt(value)}; write the path in full")
    return value


class MixtureSource(Section):
    path: str
    weight: float = Field(gt=0, description="relative share of the images")


class DataConfig(Section):
    path: str | None = Field(
        default=None, description="data set: folder, URL, brace pattern, list file, or shards themselves; docs/data.md"
    )
    mixture: tuple[MixtureSource, ...] = Field(
        default=(), description="several packed data sets instead of `path`: `[{path, weight}, ...]`"
    )
    train_split: str = Field(default="train", description="split to train on")
    test_split: str | None = Field(default="test", description="held-out split; null if there is none")
    flip: bool = Field(default=False, description="mirror images at random (likelihoods are of the mirrored set too)")
    workers: int = Field(default=2, ge=0, description="reading processes of each rank; they do not change the order")
    shuffle_window: Count = Field(default=1024, description="samples of a lane that are shuffled together")
    max_broken_share: Share = Field(
        default=0.0, description="largest share of broken samples that are skipped; more end the run"
    )
    verify: bool = Field(default=False, description="check local shards against their SHA-256 whenever one is opened")
    cache: Path | None = Field(default=None, description="folder for fetched shards; null: a temporary one")
    cache_gib: float | None = Field(default=None, gt=0, description="largest size of the cache, GiB; null: no limit")
    fetch_timeout_s: float = Field(default=600.0, gt=0, description="seconds for which fetching a shard is retried")
    allow_pipe: bool = Field(
        default=False, description="allow a list of shards to name commands (pipe:), which are executed"
    )

    @model_validator(mode="after")
    def _one_source(self) -> "DataConfig":
        if (self.path is None) == (not self.mixture):
            raise ValueError("set either path or mixture")
        if any(source.weight * 4096 < sum(s.weight for s in self.mixture) for source in self.mixture):
            raise ValueError("mixture: a weight is below 1/4096 of the sum; remove that data set or raise it")
        return self

    @property
    def paths(self) -> list[str]:
        """The path of every data set."""
        return [source.path for source in self.mixture] if self.path is None else [self.path]

    @property
    def weights(self) -> list[float]:
        return [source.weight for source in self.mixture] if self.mixture else [1.0]


class NetworkConfig(Section):
    """The settings that every network has."""

    # Each network narrows it to its own literal.
    name: Any
    class_conditional: bool = Field(default=False, description="give the labels to the network")
    label_dropout: Share = Field(
        default=0.0, description="share of labels replaced by a separate class, for guidance; usually 0.1"
    )
    fourier_features: Literal["all"] | int | tuple[int, int] = Field(
        default="all",
        description="octaves of sines of the pixels: all, how many from one level upwards, or `[first, after_last]`; "
        "docs/networks.md",
    )
    fourier_fading: bool = Field(default=True, description="each octave fades where noise erases it")
    checkpointing: bool = Field(default=False, description="recompute activations: less memory, a third more work")

    @field_validator("fourier_features", mode="before")
    @classmethod
    def _octaves(cls, value: Any) -> Any:
        span = [0, value] if type(value) is int else value if isinstance(value, list | tuple) else []
        pair = len(span) == 2 and all(type(octave) is int for octave in span)
        if value != "all" and not (pair and (-8 <= span[0] < span[1] <= 16 or value == 0)):
            raise ValueError(f"must be all, how many, or [first, after_last] within [-8, 16], not {shown(value)}")
        return value

    @model_validator(mode="after")
    def _labelled(self) -> "NetworkConfig":
        if self.label_dropout and not self.class_conditional:
            raise ValueError("label_dropout needs labels; set class_conditional to true, or label_dropout to 0")
        return self


class DDPMppConfig(NetworkConfig):
    name: Literal["ddpmpp"] = Field(default="ddpmpp", description="the U-Net of Song et al. 2021")
    channels: int = Field(default=128, ge=8, multiple_of=8, description="width at full resolution")
    multipliers: tuple[Count, ...] = Field(
        default=(1, 2, 2, 2),
        min_length=1,
        description="width of each level in units of `channels`; each level halves the resolution",
    )
    blocks: Count = Field(default=4, description="residual blocks of each level")
    attention: tuple[int, ...] = Field(default=(16,), description="resolutions (pixels) followed by self-attention")
    dropout: Share = Field(default=0.0, description="share of activations dropped in the residual blocks")
    time_embedding: Annotated[str, OneOf(TIME_EMBEDDINGS)] = Field(
        default="positional", description="sines of the time, or of a finite log-SNR too"
    )


class VDMConfig(NetworkConfig):
    name: Literal["vdm"] = Field(default="vdm", description="the network of Kingma et al. 2021, at full resolution")
    channels: int = Field(default=128, ge=8, multiple_of=8, description="width; published: 128 CIFAR-10, 256 ImageNet")
    blocks: Count = Field(default=32, description="residual blocks before and after the middle")
    dropout: Share = Field(default=0.0, description="share of activations dropped in the residual blocks")


class DiTConfig(NetworkConfig):
    name: Literal["dit"] = Field(default="dit", description="the transformer of Peebles & Xie 2023")
    size: Annotated[str, OneOf(SIZES)] = Field(default="S", description="size in the paper")
    patch: Count = Field(default=2, description="side of a token, pixels")


class OwnNetworkConfig(NetworkConfig):
    name: str = Field(description="as a file of `plugins` registers it; docs/extending.md")
    options: dict[str, Any] = Field(default={}, description="keyword arguments of its class")

    @model_validator(mode="after")
    def _fitting(self) -> "OwnNetworkConfig":
        _check_options(model.NETWORKS[self.name], self.options, **dict.fromkeys(model.ARGUMENTS))
        return self


def _check_options(maker: Callable[..., Any], options: dict[str, Any], *given: Any, **named: Any) -> None:
    """Raise ValueError if something of the user's own cannot be made with what it is given and these options."""
    try:
        inspect.signature(maker).bind(*given, **named, **options)
    except TypeError as error:
        raise ValueError(f"options: {str(error).removeprefix('inspect.Signature.bind() ')}") from error


NETWORKS: dict[str, type[NetworkConfig]] = {"ddpmpp": DDPMppConfig, "vdm": VDMConfig, "dit": DiTConfig}
"""The section of each of the package's networks."""


def _network_section(content: dict[str, Any]) -> type[NetworkConfig]:
    """ddpmpp's if it gives no name. Raises ValueError: there is no network of that name."""
    name = content.get("name", "ddpmpp")
    if isinstance(name, str) and plugins.file_of("network", name):
        return OwnNetworkConfig
    return NETWORKS[OneOf(model.NETWORKS).check(name)]


class DiffusionConfig(Section):
    predictor: Annotated[str, OneOf(PREDICTORS)] = Field(
        default="bounded", description="from network to field F; docs/method.md, sections 2 and 9"
    )
    scale: float | None = Field(default=None, gt=0, le=1, description="`s` of `bounded` and `asinh`; null: 1 / levels")
    interval: tuple[float, float] | None = Field(
        default=None, description="`[t_min, t_max]` in [0, 1]; null: that of `time_density`, or of `network_time`"
    )
    network_input: Annotated[str, OneOf(INPUTS)] | None = Field(
        default=None, description="rescaling of x_t that the network is given; null: the predictor's own"
    )
    network_time: Annotated[str, OneOf(TIMES)] | None = Field(
        default="asinh", description="time that the network is given; null: the predictor's own, mostly t"
    )
    network_skip: bool = Field(default=False, description="add the network's input image to its output, as VDM does")
    time_sampling: Annotated[str, OneOf(DRAWS)] = Field(
        default="stratified", description="draws of the times; docs/method.md, section 4"
    )
    strata: Count | None = Field(
        default=None, description="of stratified times, a divisor of the global batch; null: one for each image"
    )
    time_density: Annotated[str, OneOf(DENSITIES)] = Field(
        default="asinh", description="density of the times, cut to the interval; docs/method.md, sections 4 and 9"
    )
    soft_truncation_k: float = Field(default=1.0, ge=0, description="Soft Truncation: smallest time of density tau^-k")
    weighting: Annotated[str, OneOf(WEIGHTINGS)] = Field(
        default="bound", description="of the training loss; docs/method.md, section 9"
    )
    decoder: Annotated[str, OneOf(DECODERS)] = Field(
        default="gaussian",
        description="at the end of a truncated interval: of dequantised images, or of levels (trains on bin centres)",
    )

    @field_validator("interval")
    @classmethod
    def _rising(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0 <= value[0] < value[1] <= 1:
            raise ValueError("must be two times that rise, in [0, 1]")
        return value

    @model_validator(mode="after")
    def _stratified(self) -> "DiffusionConfig":
        if self.strata is not None and self.time_sampling != "stratified":
            raise ValueError(f"strata are of time_sampling stratified; this is {self.time_sampling}")
        return self


Layer = str | Path | Mapping[str, Any]
"""A name that comes with fdtrain, a file, or its content, whose keys may be dotted: ``{"training.steps": 200}``."""
ConfigFiles = Layer | Sequence[Layer]
"""One or several, each laid over those before it."""

MOST_LANES = 1024
"""Unless a configuration names more."""
MAX_MISTAKES = 8
"""The mistakes that one message names."""
OFFLOAD_STAGE = {"none": 0, "optimizer": 1, "weights": 3}
"""The lowest stage of ZeRO that can offload this."""


class TrainingConfig(Section):
    steps: Count = Field(description="optimiser steps")
    global_batch: Count = Field(default=128, description="images of one step over all ranks")
    micro_batch: Count | None = Field(default=None, description="images of one rank in one pass; null: all that it has")
    lanes: int = Field(
        default_factory=lambda given: math.gcd(given.get("global_batch", 1), MOST_LANES),
        ge=1,
        description="parts of the global batch, which at most so many processes share: by default the largest power of "
        "two, up to 1024, that divides it; a run that is resumed keeps its own; docs/determinism.md",
    )
    init_from: Path | None = Field(
        default=None,
        description="run, checkpoint or export whose averaged weights a new run starts from; docs/training.md",
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="bf16", description="precision of the network's arithmetic; weights are always fp32"
    )
    tf32: bool = Field(default=False, description="round the inputs of float32 products to 10 bits on a GPU")
    compile: Literal["auto", True, False] = Field(
        default="auto", description="torch.compile; `auto`: on GPUs in runs long enough to profit"
    )
    zero_stage: Literal["auto", 0, 1, 2, 3] = Field(
        default="auto", description="partition optimiser state, gradients, weights; docs/training.md"
    )
    offload: Literal["none", "optimizer", "weights"] = Field(
        default="none", description="to the CPU; optimizer: ZeRO 1 to 3, weights: ZeRO 3"
    )
    bucket_mib: Count = Field(default=32, description="gradients or weights communicated together, MiB of float32")
    optimizer: Literal["adamw", "muon"] = Field(
        default="muon", description="of matrices; AdamW steps everything else; docs/training.md"
    )
    lr: float = Field(default=2e-4, gt=0, description="learning rate of AdamW after the warm-up")
    muon_lr: float = Field(default=0.02, gt=0, description="the same of Muon")
    warmup_steps: int = Field(default=5000, ge=0, description="steps of linear warm-up from 0")
    decay: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="decay of the learning rate, to 0 at the last step"
    )
    betas: tuple[Share, Share] = Field(default=(0.9, 0.999), description="betas of AdamW")
    eps: float = Field(default=1e-8, gt=0, description="epsilon of AdamW")
    weight_decay: float = Field(default=0.0, ge=0, description="weight decay of AdamW, and of Muon")
    grad_clip: float = Field(default=1.0, ge=0, description="largest gradient norm; 0: no clipping")
    skip_grad_norm_ratio: float | None = Field(
        default=None, gt=1, description="skip steps with a gradient norm above this multiple of its running mean"
    )
    max_skips: Count = Field(default=30, description="skipped steps in a row before the run rolls back to a checkpoint")
    max_rollbacks: int = Field(default=3, ge=0, description="rollbacks, each with other draws, before the run stops")
    heartbeat_timeout_s: float = Field(
        default=60.0, ge=1, description="seconds without a heartbeat of a rank after which the others end and name it"
    )
    collective_timeout_s: float = Field(
        default=600.0, ge=1, description="seconds that a rank waits in one call for another that is alive"
    )

    @model_validator(mode="after")
    def _offloadable(self) -> "TrainingConfig":
        least = OFFLOAD_STAGE[self.offload]
        if self.zero_stage != "auto" and self.zero_stage < least:
            raise ValueError(f"offload {self.offload} needs zero_stage {least} or more; this is {self.zero_stage}")
        return self

    @model_validator(mode="after")
    def _divisible(self) -> "TrainingConfig":
        if self.global_batch % self.lanes:
            nearest = max(n for n in range(1, min(self.lanes, MOST_LANES) + 1) if self.global_batch % n == 0)
            raise ValueError(
                f"global_batch {self.global_batch} is not divisible by lanes {self.lanes}; "
                f"set lanes to {nearest}, or global_batch to a multiple of {self.lanes}"
            )
        if self.micro_batch is not None and self.micro_batch % self.lane_images:
            raise ValueError(
                f"micro_batch {self.micro_batch} is not a whole number of lanes; "
                f"set it to a multiple of global_batch / lanes = {self.lane_images}"
            )
        return self

    @property
    def lane_images(self) -> int:
        """Images of one lane in one step."""
        return self.global_batch // self.lanes


class EmaConfig(Section):
    decay: Share = Field(default=0.9999, description="largest decay per step")
    warmup_power: float = Field(default=1.0, gt=0, description="the decay of step n is at most 1 - (1 + n / 10)^-power")
    lengths: tuple[Annotated[float, Field(ge=0.001, le=0.288)], ...] = Field(
        default=(),
        description="relative lengths of averages from which any other is synthesised after training, such as "
        "`[0.05, 0.10]`; docs/training.md",
    )
    snapshot_every: Count | None = Field(
        default=None, description="steps between snapshots of these averages; null: a 64th of the run"
    )

    @model_validator(mode="after")
    def _distinct(self) -> "EmaConfig":
        if len(set(self.lengths)) < len(self.lengths):
            raise ValueError("lengths: one is given twice")
        if self.snapshot_every and not self.lengths:
            raise ValueError("snapshot_every needs lengths, such as [0.05, 0.10]; set them, or snapshot_every to null")
        return self


class CheckpointConfig(Section):
    every: Count = Field(default=5000, description="steps between checkpoints")
    keep_last: Count = Field(default=2, description="newest checkpoints that stay; the two newest sound ones always do")
    keep_every: Count | None = Field(default=None, description="checkpoints at multiples of this many steps stay")
    max_failures: int = Field(default=3, ge=0, description="failed checkpoints in a row that the run survives")
    retry_timeout_s: float = Field(
        default=300.0,
        ge=0,
        description="seconds for which writing the final checkpoint is retried, at the end or on a signal",
    )


class CallbackConfig(Section):
    name: Annotated[str, OneOf(plugins.CALLBACKS)]
    every: Count = Field(description="steps")
    options: dict[str, Any] = {}

    @model_validator(mode="after")
    def _fitting(self) -> "CallbackConfig":
        _check_options(plugins.CALLBACKS[self.name], self.options, None)
        return self


class MonitorConfig(Section):
    log_every: Count = Field(default=50, description="steps averaged into one line of the log")
    evaluate_every: Count | None = Field(default=None, description="steps between bits/dim on the held-out split")
    evaluate_draws: Count = Field(default=1, description="draws of (u, t, eps) per held-out image")
    sample_every: Count | None = Field(default=None, description="steps between sample grids")
    sample_images: Count = Field(default=64, description="images of a grid")
    sample_steps: Count = Field(default=50, description="steps of the solver")
    sample_solver: Annotated[str, OneOf(SOLVERS)] = Field(default=DEFAULT, description="see docs/sampling.md")
    sample_grid: str | tuple[float, ...] | None = Field(
        default=None, description="grid of times: a name or `sample_steps + 1` times; null: `two_ended`"
    )
    frechet_every: Count | None = Field(
        default=None, description="steps between Frechet distances of samples to `train_split`"
    )
    frechet_images: int = Field(default=1000, ge=2, description="samples to compare")
    frechet_features: str | None = Field(
        default=None, description="feature network, as for `fdtrain evaluate fid`; null: the cached Inception"
    )
    callbacks: tuple[CallbackConfig, ...] = Field(
        default=(),
        exclude_if=lambda value: not value,
        description="those of `plugins`: `[{name, every, options}, ...]`; docs/extending.md",
    )


class Config(Section):
    """A run."""

    name: str = Field(pattern=NAME, description="name of the run and of its folder")
    output: Path = Field(default=Path("runs"), description="folder of all runs")
    seed: int = Field(default=0, ge=0, lt=SEEDS, description="seed of all random numbers of the run")
    plugins: tuple[str, ...] = Field(
        default=(),
        # Earlier versions have none, and records of runs are compared.
        exclude_if=lambda value: not value,
        description="Python files of your own, executed where `--allow-code` names them; docs/extending.md",
    )
    data: DataConfig
    network: SerializeAsAny[NetworkConfig] = DDPMppConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    training: TrainingConfig
    ema: EmaConfig = EmaConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    monitor: MonitorConfig = MonitorConfig()

    @field_validator("network", mode="before")
    @classmethod
    def _of_its_name(cls, value: Any) -> Any:
        return _network_section(value).model_validate(value) if isinstance(value, dict) else value

    @field_validator("plugins")
    @classmethod
    def _allowed(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if lacking := [path for path in value if Path(path).name not in model.CODE]:
            files = [Path(file) for file in info.context or ()]
            who = ", ".join(map(str, files)) or "the configuration"
            raise model.NotAllowed(who, lacking, [file.parent for file in files])
        return value

    @model_validator(mode="after")
    def _even_strata(self) -> "Config":
        strata, batch = self.diffusion.strata, self.training.global_batch
        if strata and batch % strata:
            nearest = max(n for n in range(1, min(strata, batch) + 1) if batch % n == 0)
            raise ValueError(
                f"diffusion.strata {strata} does not divide training.global_batch {batch}; set it to {nearest}"
            )
        return self

    @model_validator(mode="after")
    def _recorded(self) -> "Config":
        """A run records the files that ``plugins`` names."""
        used = {
            ("network", self.network.name),
            ("predictor", self.diffusion.predictor),
            ("density", self.diffusion.time_density),
            ("solver", self.monitor.sample_solver),
            *(("callback", callback.name) for callback in self.monitor.callbacks),
        }
        if lacking := plugins.code_of(*used).keys() - self.code.keys():
            raise ValueError(f"it uses what is in {', '.join(sorted(lacking))}; name that in plugins: [...]")
        return self

    @property
    def code(self) -> dict[str, str]:
        """SHA-256 of the files of ``plugins``, by name: what is executed is the file of that name that is allowed."""
        return {Path(path).name: model.CODE[Path(path).name] for path in self.plugins}

    @property
    def folder(self) -> Path:
        return self.output / self.name

    @property
    def snapshot_every(self) -> int | None:
        """Steps between snapshots of the power-function averages; None if there are none."""
        return self.ema.snapshot_every or (max(1, self.training.steps // 64) if self.ema.lengths else None)

    def scale(self, levels: int) -> float:
        """``s`` of the bounded predictor and the asinh density, for data of ``levels`` levels."""
        return self.diffusion.scale if self.diffusion.scale is not None else 1 / levels


CANNOT_READ = "--config: cannot read"
RENAMED = {
    "training.clip": "training.grad_clip",
    "training.spike": "training.skip_grad_norm_ratio",
    "training.max_returns": "training.max_rollbacks",
    "training.silence_seconds": "training.heartbeat_timeout_s",
    "training.patience_seconds": "training.collective_timeout_s",
    "data.fetch_seconds": "data.fetch_timeout_s",
    "checkpoint.retry_seconds": "checkpoint.retry_timeout_s",
}
"""Keys of earlier versions, and their present names."""
DROPPED = {
    "training.adam": "fused",
    "training.overlap": True,
    # Of a density that was learned while training.
    "diffusion.adaptive_base": "asinh",
    "diffusion.adaptive_bins": 32,
    "diffusion.adaptive_floor": 0.2,
    "diffusion.adaptive_update_every": 50,
}
"""Keys of earlier versions, which their recorded configurations have, and the values that mean what is done now."""


def load_config(path: ConfigFiles, overrides: Sequence[str] = (), origin: str = "--set") -> Config:
    """Read a configuration and apply ``section.key=value`` overrides (values are YAML too), given by ``origin``.

    Of several files each is laid over those before it, key by key: a preset over the configuration of a data set. An
    override takes the place of what its key had, also of a section.

    Raises:
        UserError: no such file, not YAML, unknown key, wrong type, impossible combination, or a plugin that is not
            allowed; the message is one line that names the key.
    """
    given = [path] if isinstance(path, str | Path | Mapping) else path
    content, layers = {}, []
    for layer in given:
        layers.append(_layer(layer))
        content = _laid_over(content, layers[-1][1])
    files = [name for name, _ in layers]
    for override in overrides:
        place, value = _override(override)
        layers.append((origin, _at(place, value)))
        content = _laid_over(content, layers[-1][1], len(place) - 1)
    for key, meant in DROPPED.items():
        section, _, name = key.partition(".")
        if isinstance(there := content.get(section), dict) and there.get(name) == meant:
            content[section] = {key: value for key, value in there.items() if key != name}
    try:
        return Config.model_validate(content, context=[layer for layer in given if not isinstance(layer, Mapping)])
    except ValidationError as error:
        # lanes follow from other keys, and cannot where these are wrong.
        errors = [e for e in error.errors() if e["type"] != "default_factory_not_called"]
        mistakes = [_explain(e, content) for e in errors]
        more = [f"and {len(mistakes) - MAX_MISTAKES} more"] if mistakes[MAX_MISTAKES:] else []
        authors = {name for e in errors for name in _authors(layers, e["loc"])} or files
        where = " and ".join(dict.fromkeys(name for name, _ in layers if name in authors))
        raise UserError("; ".join(mistakes[:MAX_MISTAKES] + more) + f" (in {where}).") from error


def _layer(given: Layer) -> tuple[str, dict[str, Any]]:
    """Its name in messages and its content, with sections within sections as YAML has them."""
    if isinstance(given, Mapping):
        return "the mapping", _nested(given)
    holds = "sections such as 'data:' and 'training:'"
    return str(given), read_mapping(shipped.find(given, CANNOT_READ), CANNOT_READ, holds)


def _nested(content: Mapping[str, Any]) -> dict[str, Any]:
    """Of a mapping whose keys may be dotted, with paths as texts."""
    nested: dict[str, Any] = {}
    for key, value in content.items():
        value = _nested(value) if isinstance(value, Mapping) else value
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
        nested = _laid_over(nested, _at(str(key).split("."), value))
    return nested


def _override(text: str) -> tuple[list[str], Any]:
    """The parts of its key, and its value."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"--set {excerpt(text)}: expected section.key=value, such as training.lr=1e-4.")
    try:
        return key.split("."), parse(value)
    except UserError as error:
        raise UserError(f"--set {excerpt(text)}: not a YAML value: {error}.") from error


def _at(place: Sequence[str], value: Any) -> dict[str, Any]:
    for part in reversed(place):
        value = {part: value}
    return value


def _laid_over(below: dict[str, Any], above: dict[str, Any], depth: int = MAX_DEPTH) -> dict[str, Any]:
    """The keys of both; where both have one, sections are joined, so deep, and other values are those above."""
    merged = dict(below)
    for key, value in above.items():
        before = merged.get(key)
        if depth > 0 and isinstance(before, dict) and isinstance(value, dict):
            value = _laid_over(before, value, depth - 1)
        merged[key] = value
    return merged


def _authors(layers: list[tuple[str, dict[str, Any]]], place: tuple[int | str, ...]) -> list[str]:
    """Who gave what is wrong at a place: the last who did; all of a section, whose values do not go together."""
    there = [(name, value) for name, layer in layers if (value := _value(layer, place)) is not ...]
    together = bool(there) and isinstance(there[-1][1], dict)
    return [name for name, _ in (there if together else there[-1:])]


def _value(layer: Any, place: tuple[int | str, ...]) -> Any:
    """At a place, or what stands above it in place of a section; ``...`` if there is none."""
    for part in place:
        if not isinstance(layer, dict):
            break
        layer = layer.get(part, ...)
    return layer


def dump_config(config: Config) -> str:
    """The resolved configuration, every default spelled out, as YAML that :func:`load_config` reads.

    Credentials in URLs are masked; references to the environment stay.
    """
    return yaml.safe_dump(masked_values(config.model_dump(mode="json")), sort_keys=False)


def settings_of(config: Config) -> dict[str, Any]:
    """The resolved configuration by dotted keys, as YAML has it."""
    return flattened(parse(dump_config(config)))


def _explain(error: Mapping[str, Any], content: dict[str, Any]) -> str:
    """One clause that explains one of pydantic's errors with a configuration of this content."""
    name, kind = ".".join(excerpt(part) for part in error["loc"]), error["type"]
    if name in RENAMED:
        return f"{name} is called {RENAMED[name]} now"
    if kind == "extra_forbidden" and name in DROPPED:
        return f"{name} is no more; remove it: what is done now was {shown(DROPPED[name])}"
    if kind == "extra_forbidden":
        return _unknown(name, content)
    if kind == "missing":
        return f"{name} is missing"
    if kind == "value_error":
        return f"{name or 'configuration'}: {error['ctx']['error']}"
    wanted = f"{name}: {error['msg'][0].lower()}{error['msg'][1:]}, not {shown(error['input'])}"
    is_text = kind in ("string_type", "path_type") and isinstance(error["input"], int | float)
    return wanted + ("; put quotes around a text that YAML reads so" if is_text else "")


def _unknown(name: str, content: dict[str, Any]) -> str:
    """Names the nearest valid key: of the same section, else of any, or of another network."""
    section, _, key = name.rpartition(".")
    where = f"section '{section}'" if section else "the configuration"
    kinds = {name: field.annotation for name, field in Config.model_fields.items()}
    sections = {name: of for name, of in kinds.items() if isinstance(of, type) and issubclass(of, Section)}
    if section == "network":
        sections[section] = _network_section(content[section])
    here = sections.get(section, Config).model_fields
    elsewhere = {key: f"network.{key}' of '{name}" for name, of in NETWORKS.items() for key in of.model_fields}
    elsewhere |= {key: f"{name}.{key}" for name, of in sections.items() for key in of.model_fields}
    if near := difflib.get_close_matches(key, here, 1, 0.6):
        hint = f": did you mean '{near[0]}'?"
    elif near := difflib.get_close_matches(key, elsewhere, 1, 0.8):
        hint = f": did you mean '{elsewhere[near[0]]}'?"
    else:
        hint = f" (it has: {', '.join(here)})"
    return f"unknown key '{key}' in {where}{hint}"
