"""The model of a configuration on a data set."""

import torch

from fdtrain.config import Config
from fdtrain.data.dataset import DatasetDescription
from fdtrain.diffusion.formulation import formulation_interval
from fdtrain.errors import UserError
from fdtrain.networks.embeddings import all_octaves
from fdtrain.networks.model import ModelSpec
from fdtrain.plugins import code_of


def model_spec(config: Config, description: DatasetDescription) -> ModelSpec:
    """The model that a configuration asks for on a data set.

    Raises:
        UserError: the data set lacks the labels, or parts of the section ``diffusion`` do not go together.
    """
    network, how, scale = config.network, config.diffusion, config.scale(description.levels)
    if network.class_conditional and not description.classes:
        raise UserError(f"network.class_conditional: data set '{description.name}' has no labels. Set it to false.")
    # How it is trained, or said elsewhere in the specification.
    others = {"name", "class_conditional", "label_dropout", "checkpointing"}
    options = network.model_dump(mode="json", exclude=others)
    options |= options.pop("options", {})
    if options["fourier_features"] == "all":
        options["fourier_features"] = list(all_octaves(description.levels))
    parts = how.predictor, scale, how.time_density, how.network_input, how.network_time, how.decoder, how.interval
    try:
        # Numbers, also where the caller counts parameters on the meta device.
        with torch.device("cpu"):
            interval = formulation_interval(*parts)
    except ValueError as error:
        raise UserError(f"diffusion.{error}.") from error
    return ModelSpec(
        network=network.name,
        network_options=options,
        predictor=how.predictor,
        scale=scale,
        channels=description.channels,
        size=description.size,
        levels=description.levels,
        dataset=description.name,
        classes=description.classes if network.class_conditional else [],
        null_class=network.label_dropout > 0,
        interval=[interval.t_min, interval.t_max],
        decoder=how.decoder,
        network_input=how.network_input,
        network_time=how.network_time,
        network_skip=how.network_skip,
        code=code_of(("network", network.name), ("predictor", how.predictor)),
    )
