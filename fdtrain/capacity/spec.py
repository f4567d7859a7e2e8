"""The model of a configuration on a data set."""

from typing import Any

import torch

from fdtrain.config import Config, DiffusionConfig
from fdtrain.data.dataset import DatasetDescription
from fdtrain.diffusion.formulation import formulation_interval
from fdtrain.errors import UserError
from fdtrain.networks.embeddings import all_octaves
from fdtrain.networks.model import ModelSpec
from fdtrain.plugins import code_of


def model_spec(config: Config, description: DatasetDescription) -> ModelSpec:
    """The model that a configuration asks for on a data set."""
    network = config.network
    if network.class_conditional and not description.classes:
        raise UserError(f"network.class_conditional: data set '{description.name}' has no labels. Set it to false.")
    # How it is trained, or said elsewhere in the specification.
    others = {"name", "class_conditional", "label_dropout", "checkpointing"}
    options = network.model_dump(mode="json", exclude=others)
    options |= options.pop("options", {})
    if options["fourier_features"] == "all":
        options["fourier_features"] = list(all_octaves(description.levels))
    return ModelSpec(
        network=network.name,
        network_options=options,
        predictor=config.diffusion.predictor,
        scale=config.scale(description.levels),
        channels=description.channels,
        size=description.size,
        levels=description.levels,
        dataset=description.name,
        classes=description.classes if network.class_conditional else [],
        null_class=network.label_dropout > 0,
        code=code_of(("network", network.name), ("predictor", config.diffusion.predictor)),
        **_formulation(config.diffusion, config.scale(description.levels)),
    )


def _formulation(diffusion: DiffusionConfig, scale: float) -> dict[str, Any]:
    """What of the section ``diffusion`` a model is.

    Raises:
        UserError: its parts do not go together on their interval.
    """
    try:
        # Numbers, also where the caller counts parameters on the meta device.
        with torch.device("cpu"):
            interval = formulation_interval(
                diffusion.predictor,
                scale,
                diffusion.time_density,
                diffusion.network_input,
                diffusion.network_time,
                diffusion.decoder,
                diffusion.interval,
            )
    except ValueError as error:
        raise UserError(f"diffusion.{error}.") from error
    return {
        "interval": [interval.t_min, interval.t_max],
        "decoder": diffusion.decoder,
        "network_input": diffusion.network_input,
        "network_time": diffusion.network_time,
        "network_skip": diffusion.network_skip,
    }
