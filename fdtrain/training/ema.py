"""Exponential moving average of the weights, in float32 from float32 weights (docs/training.md)."""

from ema_pytorch import EMA

from fdtrain.networks.model import Model


def make_ema(model: Model, decay: float, warmup_power: float) -> EMA:
    """EMA of ``model``, to be updated once per optimiser step.

    The decay of step n is ``min(decay, 1 - (1 + n / 10)^-warmup_power)``: at power 1 about the warm-up of
    Song et al. 2021. Made before DeepSpeed wraps the model, whose module keeps float32 weights at every
    precision and at ZeRO stages 0 to 2 keeps all of them on every rank; so each rank's copy is the same.
    """
    return EMA(
        model,
        beta=decay,
        power=warmup_power,
        inv_gamma=10.0,
        update_after_step=0,
        update_every=1,
        include_online_model=False,
        use_foreach=True,
    )
