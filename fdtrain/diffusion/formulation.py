"""Which interval a formulation runs on, and whether its parts go together there."""

from collections.abc import Sequence

import torch

from fdtrain.diffusion.clocks import CLOCKS, DENSITIES
from fdtrain.diffusion.interval import Interval
from fdtrain.diffusion.predictors import make_predictor


def formulation_interval(
    predictor: str,
    scale: float,
    density: str,
    network_input: str | None = None,
    network_time: str | None = None,
    decoder: str = "gaussian",
    stated: Sequence[float] | None = None,
) -> Interval:
    """The interval that is stated, or the one that the density's or the network's clock has in its source.

    Names are those of the configuration's section ``diffusion``.

    Raises:
        ValueError: something is not finite at an end of it; the message begins with the setting to change.
    """
    clock = DENSITIES[density](scale)
    interval = Interval(*stated) if stated is not None else clock.interval
    if interval is None and network_time in CLOCKS:
        interval = CLOCKS[network_time].interval
    if interval is None:
        raise ValueError(f"interval: time_density {density} has none of its own; state [t_min, t_max]")
    asked = make_predictor(predictor, scale, network_input, network_time)
    names = f"predictor {predictor}"
    if network_input or network_time:
        names += f" with network_input {network_input or 'null'} and network_time {network_time or 'null'}"
    for t in (interval.t_min, interval.t_max):
        side = "t_min above 0" if t == interval.t_min else "t_max below 1"
        if not asked.finite(t):
            raise ValueError(f"interval: {names} is singular at t = {t:g}; state an interval with {side}")
        if not torch.isfinite(clock.cdf(torch.tensor([t], dtype=torch.float64))).all():
            raise ValueError(f"interval: time_density {density} has no end at t = {t:g}; state one with {side}")
    if decoder == "discrete" and interval.t_min == 0:
        raise ValueError("decoder: discrete is for a truncated interval; state an interval with t_min above 0")
    return interval
