"""The model: a network and the predictor that turns its output into the field ``F``; what rebuilds it; its weights."""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fdtrain.diffusion.interval import Interval
from fdtrain.diffusion.objective import Bound
from fdtrain.diffusion.predictors import PREDICTORS, TIMES, Field, make_predictor
from fdtrain.errors import UserError, excerpt
from fdtrain.files import NAME
from fdtrain.networks.ddpmpp import DDPMpp
from fdtrain.networks.dit import DiT
from fdtrain.networks.embeddings import PixelFeatures
from fdtrain.networks.vdm import VDM

NETWORKS: dict[str, type[nn.Module]] = {"ddpmpp": DDPMpp, "vdm": VDM, "dit": DiT}
ARGUMENTS = ("image_channels", "image_size", "levels", "classes", "input_channels", "checkpointing")
"""What every network is made with, besides its own options: channels and side of the images, values that a pixel takes,
labels (0: unconditional), channels of its input, which :class:`PixelFeatures` are joined to (None: the image's), and
whether it recomputes activations in the backward pass instead of keeping them."""
VERSION = 1
CODE: dict[str, str] = {}
"""The user's own files that this process has executed (plugins.py): SHA-256 by name."""
CODE_FOLDER = "plugins"
"""Of a run and of an export: copies of such files."""


class NotAllowed(UserError):
    """``who`` needs files of code that the user has not allowed; there may be copies in one of ``folders``."""

    def __init__(self, who: object, files: list[str], folders: Sequence[Path]):
        options = []
        for file in files:
            copies = (folder / CODE_FOLDER / Path(file).name for folder in folders)
            found = next((copy for copy in copies if copy.is_file()), file)
            options.append(f"--allow-code {shlex.quote(excerpt(found))}")
        other = any(Path(file).name in CODE for file in files)
        why = "is of other code than was allowed" if other else "needs code, which is executed only if you allow it"
        super().__init__(
            f"{who} {why}. Read it; if you trust it, give {' '.join(options)} (in Python: allow_code=[...])."
        )


@dataclass(frozen=True)
class ModelSpec:
    """All that is needed to rebuild a model and to read its output, besides the weights.

    ``network_options`` are the keyword arguments of the network's class and of its :class:`PixelFeatures`
    (``fourier_features``, ``fourier_fading``; those of older models do not fade); ``classes`` are the names of the
    labels it was trained with, empty for an unconditional network; ``null_class`` says that one more label,
    after theirs, stands for none (classifier-free guidance, Ho & Salimans 2022); ``interval``, ``decoder``,
    ``network_input``, ``network_time`` and ``network_skip`` are of the configuration's section ``diffusion``; ``code``
    are the files of the user's own that network and predictor are in, by name, with their SHA-256; the rest describes
    the images.
    """

    network: str
    network_options: dict[str, Any]
    predictor: str
    scale: float
    channels: int
    size: int
    levels: int
    dataset: str
    classes: list[str] = field(default_factory=list)
    null_class: bool = False
    interval: list[float] = field(default_factory=lambda: [0.0, 1.0])
    decoder: str = "gaussian"
    network_input: str | None = None
    network_time: str | None = None
    network_skip: bool = False
    version: int = VERSION
    code: dict[str, str] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.size, self.size

    @property
    def dims(self) -> int:
        return self.channels * self.size * self.size

    @property
    def bound(self) -> Bound:
        """The one that the model is trained and evaluated by."""
        return Bound(self.levels, Interval(*self.interval), self.decoder)

    @property
    def null_label(self) -> int:
        """The label that stands for none, if there is one."""
        return len(self.classes)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.content(), indent=1) + "\n")

    def content(self) -> dict[str, Any]:
        """As :meth:`load` reads it; without ``code`` where there is none, as earlier versions have it."""
        return {name: value for name, value in asdict(self).items() if name != "code" or value}

    @staticmethod
    def load(path: Path) -> "ModelSpec":
        """Raises UserError when the file is missing, of another version or not a model's, and :class:`NotAllowed`."""
        try:
            content = json.loads(path.read_text())
            if content.get("version") != VERSION:
                raise UserError(f"{path}: version {content.get('version')}, this fdtrain reads {VERSION}.")
            code = content.get("code", {})
            if unnamed := [name for name in code if not re.fullmatch(NAME, name)]:
                raise ValueError(f"code of {excerpt(unnamed[0])!r}")
            if lacking := [name for name, sha256 in code.items() if CODE.get(name) != sha256]:
                raise NotAllowed(path, lacking, path.parents[:3])
            for key, table in (("network", NETWORKS), ("predictor", PREDICTORS)):
                if content[key] not in table:
                    raise UserError(f"{path}: no {key} {content[key]!r}; there are {', '.join(table)}.")
            if (time := content.get("network_time")) not in (None, *TIMES):
                raise UserError(
                    f"{path}: no network_time {excerpt(time)!r}; there are {', '.join(TIMES)}. If an earlier fdtrain "
                    "wrote it, use that one, or train the model again."
                )
            return ModelSpec(**content)
        except OSError as error:
            raise UserError(f"cannot read {path} ({error.strerror}).") from error
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            raise UserError(f"{path} does not describe a model ({error}).") from error

    def differences(self, other: "ModelSpec") -> list[str]:
        """Names and values that differ, for a message."""
        return [
            f"{f.name} {getattr(self, f.name)!r} against {getattr(other, f.name)!r}"
            for f in fields(self)
            if getattr(self, f.name) != getattr(other, f.name)
        ]


class Model(nn.Module):
    """``F(x, t, label)`` in float32, whatever the network computes in.

    ``spec`` is what rebuilds it. ``checkpointing`` recomputes activations in the backward pass instead of keeping them;
    it changes no result.
    """

    def __init__(self, spec: ModelSpec, checkpointing: bool = False):
        super().__init__()
        self.spec = spec
        self.null_label = spec.null_label if spec.null_class else None
        self.predictor = make_predictor(
            spec.predictor, spec.scale, spec.network_input, spec.network_time, spec.network_skip
        )
        options = dict(spec.network_options)
        self.features = PixelFeatures(
            spec.levels, options.pop("fourier_features", 0), options.pop("fourier_fading", False)
        )
        try:
            self.network = NETWORKS[spec.network](
                image_channels=spec.channels,
                image_size=spec.size,
                levels=spec.levels,
                classes=len(spec.classes) + spec.null_class,
                input_channels=self.features.channels(spec.channels),
                checkpointing=checkpointing,
                **options,
            )
        except ValueError as error:
            raise UserError(f"network: {error}.") from error

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Images ``(B, C, H, W)`` and times ``(B,)`` in float64 to ``F``, like ``x``."""
        dtype = next(self.network.parameters()).dtype
        image, time = self.predictor.inputs(x, t)
        seen = self.features(image.to(dtype), x.to(dtype), t)
        return self.predictor.field(self.network(seen, time.to(dtype), label), x, t)

    def field(self, label: Tensor | None = None, guidance: float = 1.0) -> Field:
        """``F(x, t)`` at fixed labels, or guided: ``F_null + guidance (F_label - F_null)``, at twice the work.

        Raises:
            UserError: guidance other than 1 of a model that was not trained without labels too.
        """
        if guidance == 1:
            return lambda x, t: self(x, t, label)
        if self.null_label is None or label is None:
            raise UserError("guidance needs a model trained with network.label_dropout above 0.")
        labels = torch.cat([torch.full_like(label, self.null_label), label])

        def guided(x: Tensor, t: Tensor) -> Tensor:
            without, given = self(torch.cat([x, x]), torch.cat([t, t]), labels).chunk(2)
            return without + guidance * (given - without)

        return guided


def load_weights(spec: ModelSpec, path: Path) -> Model:
    """A model on the CPU, in evaluation mode, with weights from a safetensors file (which holds no code).

    Raises:
        UserError: the file is missing, broken, or of another network.
    """
    model = Model(spec).eval().requires_grad_(False)
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read weights from {path} ({error}).") from error
    except RuntimeError as error:
        raise UserError(f"{path} holds weights of another network than its description says.") from error
    return model


def inner_matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of two or more dimensions of a network's inside, which Muon steps: not its first and its last layer,
    and not the embedding of labels, whose rows are no directions of one space."""
    ends = ("network.input.", "network.output.", "network.embed_label.")
    return {name: p for name, p in model.named_parameters() if p.dim() >= 2 and not name.startswith(ends)}


def parameter_count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
