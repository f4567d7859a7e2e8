"""DDPM++ of score_sde_pytorch (Song et al. 2021), continuous, VP and sub-VP: its checkpoint as a model of ours.

The network is that of :mod:`fdtrain.networks.ddpmpp`, operation by operation: the checkpoint numbers its modules in the
order in which they are called, which is that of our stages. Two things differ outside of it: the original's network is
given ``999 tau``, and at sub-VP the image ``z``, not rescaled. The specification says both (``network_time``,
``network_input``).
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fdtrain.diffusion.formulation import formulation_interval
from fdtrain.errors import UserError, excerpt
from fdtrain.networks.ddpmpp import DDPMpp
from fdtrain.networks.layers import Attention, ResidualBlock
from fdtrain.networks.model import Model, ModelSpec

SDES = {"vp": ("linear_vp", "score_sde_vp", None), "subvp": ("sub_vp", "score_sde_sub_vp", "sub_vp")}
"""Of a process: its clock, and which time and image the network is given."""
WEIGHTS = ("ema", "model")
LEVELS = 256

RESIDUAL = {
    "GroupNorm_0": "norm1",
    "Conv_0": "conv1",
    "Dense_0": "time",
    "GroupNorm_1": "norm2",
    "Conv_1": "conv2",
    "Conv_2": "shortcut",
}
"""The layers of a residual block there and here."""
PARAMETER = re.compile(r"(?:module\.)?all_modules\.(\d{1,4})\.(.+)")
"""``module.`` is DataParallel's."""

Module = dict[str, Tensor]
"""The parameters of one of the checkpoint's modules, by name."""


def read(path: Path, weights: str = "ema") -> tuple[list[Module], int | None]:
    """The modules of a checkpoint in order, and the step that it was saved after, if it says so.

    They have the averaged weights (``ema``) or those that were trained (``model``). No pickled code is run.

    Raises UserError: the file cannot be read, or holds something else.
    """
    if not path.is_file():
        raise UserError(f"no file {path}. Give a checkpoint of score_sde_pytorch, such as checkpoint_8.pth.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # Whatever the file is; torch's own advice is to run its code.
        raise UserError(
            f"{path} cannot be read as a PyTorch checkpoint of tensors alone ({type(error).__name__}). It is damaged, "
            "no checkpoint, or holds code, which is not run."
        ) from error
    trained = content.get("model") if isinstance(content, dict) else None
    if not isinstance(trained, dict) or not all(isinstance(value, Tensor) for value in trained.values()):
        raise UserError(f"{path} holds no 'model' of named tensors, as a checkpoint of score_sde_pytorch does.")
    # The one buffer, for other processes.
    named = {str(name): value for name, value in trained.items() if str(name).rpartition(".")[2] != "sigmas"}
    if weights == "ema":
        named = _averaged(content.get("ema"), named, path)
    step = content.get("step")
    return _modules(named, path), step if isinstance(step, int) else None


def _averaged(ema: Any, trained: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The averages, which are a list in the order of the parameters, by name."""
    shadows = ema.get("shadow_params") if isinstance(ema, dict) else None
    if not isinstance(shadows, list):
        raise UserError(f"{path} holds no averaged weights ('ema'). Take those that were trained: --weights model.")
    shapes = [getattr(shadow, "shape", None) for shadow in shadows]
    if shapes != [value.shape for value in trained.values()]:
        raise UserError(f"{path}: its averaged weights are not those of its network. Try --weights model.")
    return dict(zip(trained, shadows, strict=True))


def _modules(named: dict[str, Tensor], path: Path) -> list[Module]:
    modules: dict[int, Module] = {}
    for name, value in named.items():
        match = PARAMETER.fullmatch(name)
        # One number may stand for any shape: what is copied must not outgrow the file.
        whole = value.numel() * value.element_size() <= value.untyped_storage().nbytes()
        if match is None or not value.is_floating_point() or not whole:
            raise _other_network(path, f"it has {excerpt(name)!r}")
        modules.setdefault(int(match[1]), {})[match[2]] = value.to(torch.float32, copy=True)
    if sorted(modules) != list(range(len(modules))):
        raise _other_network(path, "its modules are not numbered in one sequence")
    return [modules[i] for i in range(len(modules))]


def _other_network(path: Path | str, what: str) -> UserError:
    return UserError(
        f"{path} is not of DDPM++ ({what}). Of score_sde_pytorch's networks, only DDPM++ continuous can be converted."
    )


def convert(path: Path, weights: str, sde: str, size: int, dataset: str) -> tuple[Model, int | None]:
    """The model of a checkpoint, and its step. Its field is exactly that of the original's noise prediction.

    Args:
        weights: one of :data:`WEIGHTS`.
        sde: one of :data:`SDES`. This and what follows is not in the checkpoint:
        size: H = W of its images.
        dataset: the name of its data, of 256 levels.

    Raises:
        UserError: the checkpoint cannot be read, or is of another network.
    """
    modules, step = read(path, weights)
    try:
        spec = _spec(modules, sde, size, dataset)
        with torch.device("meta"):
            model = Model(spec).eval().requires_grad_(False)
        assert isinstance(model.network, DDPMpp)
        for ours, theirs in zip(_in_order(model.network), modules, strict=True):
            ours.load_state_dict(_renamed(ours, theirs), assign=True)
    except (ArithmeticError, LookupError, ValueError, RuntimeError) as error:
        raise _other_network(path, "its modules are others, or their shapes") from error
    return model, step


def _spec(modules: list[Module], sde: str, size: int, dataset: str) -> ModelSpec:
    """The specification that the sequence and the shapes of the modules tell.

    Raises:
        ArithmeticError, LookupError, ValueError, RuntimeError: they are of another network.
    """
    clock, time, image = SDES[sde]
    interval = formulation_interval("eps", 1 / LEVELS, clock, image, time)
    channels = modules[0]["weight"].shape[1]
    return ModelSpec(
        network="ddpmpp",
        network_options={"channels": channels, **_levels(modules, channels, size)},
        predictor="eps",
        scale=1 / LEVELS,
        channels=modules[2]["weight"].shape[1],
        size=size,
        levels=LEVELS,
        dataset=dataset,
        interval=[interval.t_min, interval.t_max],
        network_input=image,
        network_time=time,
    )


def _levels(modules: list[Module], channels: int, size: int) -> dict[str, Any]:
    """Widths, residual blocks and attention of the levels."""
    kinds = [_kind(module) for module in modules]
    levels = kinds.count("resample") // 2 + 1
    # On the way down, in the middle, and one more for each level on the way up.
    blocks, rest = divmod(kinds.count("residual") - 2 - levels, 2 * levels)
    if rest or blocks < 1:
        raise ValueError("its residual blocks are not the same number at every level")
    at, multipliers, attention = 3, [], []
    for level in range(levels):
        multiplier, rest = divmod(len(modules[at]["Conv_0.weight"]), channels)
        if rest:
            raise ValueError("a width is no multiple of the first")
        multipliers.append(multiplier)
        attended = kinds[at + 1] == "attention"
        attention += [size >> level] if attended else []
        at += blocks * (1 + attended) + 1
    if size < 1 or size % 2 ** (levels - 1):
        raise UserError(f"--size {size}: this network halves its images {levels - 1} times.")
    return {"multipliers": multipliers, "blocks": blocks, "attention": attention}


def _kind(module: Module) -> str:
    if "NIN_0.W" in module:
        return "attention"
    if "Conv_0.weight" not in module:
        return "layer"
    outputs, inputs = module["Conv_0.weight"].shape[:2]
    return "resample" if inputs == outputs and "Conv_2.weight" in module else "residual"


def _in_order(network: DDPMpp) -> Iterator[nn.Module]:
    """Our modules in the order of theirs."""
    yield from (network.embed[0], network.embed[2], network.input)
    stages: Any = [*network.down, network.middle, *network.up]
    for stage in stages:
        yield from stage
    yield from (network.output[0], network.output[2])


def _renamed(ours: nn.Module, theirs: Module) -> Module:
    """The parameters of one of their modules under our names."""
    if isinstance(ours, ResidualBlock):
        split = {name: name.rpartition(".") for name in theirs}
        return {f"{RESIDUAL[layer]}.{parameter}": theirs[name] for name, (layer, _, parameter) in split.items()}
    if not isinstance(ours, Attention):
        return theirs
    if len(theirs) != 10:
        raise LookupError("a norm and four products have ten parameters")
    weights, biases = zip(*(_pixelwise(theirs, f"NIN_{i}") for i in range(4)))
    return {
        "norm.weight": theirs["GroupNorm_0.weight"],
        "norm.bias": theirs["GroupNorm_0.bias"],
        "qkv.weight": torch.cat(weights[:3]),
        "qkv.bias": torch.cat(biases[:3]),
        "out.weight": weights[3],
        "out.bias": biases[3],
    }


def _pixelwise(module: Module, name: str) -> tuple[Tensor, Tensor]:
    """A product with each pixel's channels, ``(inputs, outputs)`` there, as weight and bias of a convolution."""
    return module[f"{name}.W"].T[:, :, None, None].contiguous(), module[f"{name}.b"]
