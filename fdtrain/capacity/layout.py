"""How a step's images are shared among ranks and passes: derived once from the configuration and the launch."""

from dataclasses import dataclass

from fdtrain.config import OFFLOAD_STAGE, TrainingConfig
from fdtrain.data.lanes import own_lanes
from fdtrain.errors import UserError


@dataclass(frozen=True)
class RunLayout:
    """One rank's place in a run. ``lanes`` are those of the global batch (docs/determinism.md), of ``lane_images``
    images each; a rank takes its share of them in ``passes`` passes, whose gradients it accumulates."""

    rank: int
    world_size: int
    zero_stage: int
    lanes: int
    lane_images: int
    passes: int

    @property
    def own_lanes(self) -> range:
        """The lanes of this rank."""
        return own_lanes(self.rank, self.world_size, self.lanes)

    @property
    def pass_lanes(self) -> list[range]:
        """The lanes of this rank, pass by pass."""
        lanes = self.own_lanes
        size = len(lanes) // self.passes
        return [lanes[i : i + size] for i in range(0, len(lanes), size)]

    @property
    def micro_batch(self) -> int:
        """Images of one rank in one pass."""
        return self.lanes * self.lane_images // self.world_size // self.passes


def zero_stage(training: TrainingConfig, world_size: int) -> int:
    """ZeRO's stage on ``world_size`` ranks."""
    if training.zero_stage != "auto":
        return training.zero_stage
    # With one rank ZeRO would only copy gradients and weights.
    return max(OFFLOAD_STAGE[training.offload], int(world_size > 1))


def run_layout(training: TrainingConfig, world_size: int, rank: int = 0) -> RunLayout:
    """The layout of a configuration on ``world_size`` ranks.

    Raises:
        UserError: this number of ranks cannot share the lanes, or the passes, evenly.
    """
    lanes = training.lanes
    if lanes % world_size:
        possible = [n for n in range(1, lanes + 1) if lanes % n == 0]
        raise UserError(
            f"training.lanes: {lanes} lanes cannot be shared by {world_size} processes; "
            f"launch a number out of {', '.join(map(str, possible))}, or change training.lanes."
        )
    share = training.global_batch // world_size
    micro = training.micro_batch or share
    if share % micro:
        raise UserError(
            f"training.micro_batch: each of {world_size} processes has {share} images of a step, "
            f"which is no multiple of micro_batch {micro}; choose a divisor of {share}."
        )
    return RunLayout(rank, world_size, zero_stage(training, world_size), lanes, training.lane_images, share // micro)
