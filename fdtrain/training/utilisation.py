"""How fast a run is, and what share of its devices it uses (docs/lab/performance.md)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Utilisation:
    """What turns images/s into a share.

    Args:
        flops_per_image: of a training step, counted; without what checkpointing computes again.
        devices: of the run.
        rate: measured FLOP/s of matrix products, all devices together.
    """

    flops_per_image: int
    devices: int
    rate: float

    def speed(self, images_per_second: float) -> dict[str, float]:
        """Metrics of a window: whole and per device, and the model FLOPs utilisation of Chowdhery et al. 2022 (PaLM,
        appendix B), against the rate that was measured in place of the data sheet's. Above 1 that measurement was
        disturbed, by another program on the device or a clock that changed: then there is none."""
        flops = images_per_second * self.flops_per_image
        share = flops / self.rate
        return {
            "images_per_second": images_per_second,
            "images_per_second_per_device": images_per_second / self.devices,
            "gflop_per_image": self.flops_per_image / 1e9,
            "tflops_per_device": flops / self.devices / 1e12,
            **({"utilisation": share} if share <= 1 else {}),
        }
