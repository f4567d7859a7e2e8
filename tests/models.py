"""Small models of the digits, for tests that train nothing."""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from fdtrain.networks.model import Model, ModelSpec

DIGITS = ModelSpec(
    network="ddpmpp",
    network_options={"channels": 8, "multipliers": [1], "blocks": 1, "attention": []},
    predictor="plain",
    scale=1 / 17,
    channels=1,
    size=8,
    levels=17,
    dataset="digits",
)


def filled(spec: ModelSpec, seed: int = 0) -> Model:
    """The model with random weights, those of its last layers included, which begin at zero."""
    model = Model(spec).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def flat_features(folder: Path) -> Path:
    """TorchScript whose features are the pixels of 8x8 images."""
    path = folder / "pixels.pt"
    torch.jit.script(torch.nn.Flatten()).save(str(path))
    path.with_suffix(".json").write_text('{"name": "pixels", "size": 8, "mean": [0, 0, 0], "std": [1, 1, 1]}')
    return path


def saved(model: Model, folder: Path) -> Path:
    """As an export of two files."""
    folder.mkdir(parents=True, exist_ok=True)
    model.spec.save(folder / "config.json")
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def evaluate(command, *words):
    """What a module of fdtrain/evaluation/ returns, as ``fdtrain evaluate`` runs it on a CPU."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    arguments = parser.parse_args([str(word) for word in words])
    arguments.device = torch.device("cpu")
    return command.run(arguments)
