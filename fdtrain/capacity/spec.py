"""The model of a configuration on a data set."""

from fdtrain.config import Config
from fdtrain.data.dataset import DatasetDescription
from fdtrain.errors import UserError
from fdtrain.networks.model import ModelSpec


def model_spec(config: Config, description: DatasetDescription) -> ModelSpec:
    """The model that a configuration asks for on a data set."""
    network = config.network
    if network.class_conditional and not description.classes:
        raise UserError(f"network.class_conditional: data set '{description.name}' has no labels. Set it to false.")
    # How it is trained, or said elsewhere in the specification.
    others = {"name", "class_conditional", "label_dropout", "checkpointing"}
    return ModelSpec(
        network=network.name,
        network_options=network.model_dump(mode="json", exclude=others),
        predictor=config.diffusion.predictor,
        scale=config.scale(description.levels),
        channels=description.channels,
        size=description.size,
        levels=description.levels,
        dataset=description.name,
        classes=description.classes if network.class_conditional else [],
        null_class=network.label_dropout > 0,
    )
