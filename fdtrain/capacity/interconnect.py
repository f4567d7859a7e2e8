"""The time of a step on many devices: computation, and the part of the communication that it does not hide.

    step(N) = alone + exposed(N),    exposed = gather + max(0, reduce - hideable)

``alone`` is the step of one device on the same images. With ``G`` bytes of float32 gradients, a ring moves at least
``(N - 1) / N G`` bytes per device to reduce them to their owners, and as many to gather the results
(Patarasuk & Yuan 2009; Rajbhandari et al. 2020): an all-reduce is both. A collective takes bytes / bandwidth + hops x
latency.
"""

import math
from dataclasses import dataclass

REDUCE_TO_OWNERS = 16
"""Ranks up to which ZeRO 1 and 2 reduce each piece of the gradient to the rank that owns it, which moves the fewest
bytes. DeepSpeed calls once per owner, so with more ranks it reduces everything to everyone, with 1.5 times the
bytes."""
BUCKET = 2**23
"""Gradients that DeepSpeed reduces together (``training.bucket_mib``), few enough to begin early in the backward."""


@dataclass(frozen=True)
class Interconnect:
    """The links between devices: bytes/s and seconds of one device's link, in each direction.

    Defaults: NVLink of a Hopper node as NCCL's ``busbw`` shows it, one 400 Gb/s card per GPU at 90 %, and the
    time of a hop between nodes. The CPU's are to be measured: ``benchmarks/scaling.py``.
    """

    devices_per_node: int = 8
    inside: float = 350e9
    between: float = 45e9
    latency: float = 10e-6

    def bandwidth(self, devices: int) -> float:
        """Bytes/s of a ring over ``devices``, that of its narrowest link. A node's cards share the rings evenly."""
        if devices <= self.devices_per_node:
            return self.inside
        return min(self.inside, self.devices_per_node * self.between)


@dataclass(frozen=True)
class Traffic:
    """Bytes of one device in one step, in each direction."""

    reduce: float
    gather: float

    @property
    def total(self) -> float:
        return self.reduce + self.gather


def least(gradient_bytes: int, devices: int) -> float:
    """The fewest bytes per device that any method must move, those of a ring's all-reduce."""
    return 2 * (devices - 1) / devices * gradient_bytes


def traffic(gradient_bytes: int, devices: int, zero_stage: int, passes: int = 1) -> Traffic:
    """The traffic of a step. ZeRO 2 and 3 reduce in each pass, and ZeRO 3 gathers the weights twice in each."""
    once = (devices - 1) / devices * gradient_bytes
    if zero_stage == 0:
        return Traffic(reduce=2 * once, gather=0)
    if zero_stage == 3:
        return Traffic(reduce=passes * once, gather=2 * passes * once)
    reductions = (1 if devices <= REDUCE_TO_OWNERS else 2) * (passes if zero_stage == 2 else 1)
    return Traffic(reduce=reductions * once, gather=once)


@dataclass(frozen=True)
class StepTime:
    """The seconds of one step."""

    alone: float
    reduce: float
    gather: float
    exposed: float

    @property
    def seconds(self) -> float:
        return self.alone + self.exposed

    @property
    def efficiency(self) -> float:
        """Weak scaling: the fraction of the speed of as many independent devices."""
        return self.alone / self.seconds


def step(
    alone: float,
    gradient_bytes: int,
    devices: int,
    zero_stage: int,
    network: Interconnect,
    passes: int = 1,
    overlap: bool = True,
) -> StepTime:
    """The predicted time of a step.

    Args:
        alone: seconds of one device on the same images.
        gradient_bytes: 4 per parameter.
        passes: the passes of a step.
        overlap: whether reductions hide behind the backward pass, two thirds of the last pass; never at stage 0, where
            DeepSpeed reduces after it.
    """
    if devices == 1:
        return StepTime(alone, 0.0, 0.0, 0.0)
    moved, bandwidth = traffic(gradient_bytes, devices, zero_stage, passes), network.bandwidth(devices)
    # A tree's depth, there and back, for all-reduce; once round the ring for the others.
    tree, ring = 2 * math.ceil(math.log2(devices)), devices - 1
    buckets = math.ceil(gradient_bytes / 4 / BUCKET)
    hops = tree * buckets if zero_stage == 0 or devices > REDUCE_TO_OWNERS else ring * (buckets + devices)
    reduce = moved.reduce / bandwidth + hops * network.latency
    gather = moved.gather / bandwidth + (ring * network.latency if moved.gather else 0.0)
    # The last bucket is full when the pass ends.
    hideable = alone / passes * 2 / 3 * (1 - 1 / buckets) if overlap and zero_stage else 0.0
    return StepTime(alone, reduce, gather, gather + max(0.0, reduce - hideable))
