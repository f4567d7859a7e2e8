"""A small model of the digits, for tests that replace its network."""

from fdtrain.networks.model import ModelSpec

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
