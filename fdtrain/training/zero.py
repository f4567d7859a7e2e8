"""Where ZeRO keeps what a rank steps: the mapping between parameters and its flat partitions, at each stage.

Stage 0 steps the parameters themselves, on every rank. Stages 1 and 2 step one flat float32 partition a rank, beside
the whole weights that the network computes with. Stage 3 partitions each parameter among the ranks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fdtrain.distributed import share
from fdtrain.networks.model import Model


@dataclass(frozen=True)
class SteppedRange:
    """Where a run of a parameter's elements lies that this rank steps: ``owner`` is what the optimiser has."""

    parameter: str
    start: int
    owner: Tensor
    offset: int
    count: int

    def of(self, flat: Tensor) -> Tensor:
        """These elements of the owner, or of what is shaped like it."""
        return flat.view(-1)[self.offset : self.offset + self.count]


def owners(zero: Any, model: Model, stage: int) -> list[Tensor]:
    """All tensors that the optimiser has, in the same order on every rank."""
    if stage == 0:
        return list(model.parameters())
    return zero.fp32_partitioned_groups_flat if stage == 3 else zero.single_partition_of_fp32_groups


def stepped_ranges(zero: Any, model: Model, stage: int) -> Iterator[SteppedRange]:
    """What this rank steps, by DeepSpeed's optimiser: everything at stage 0, else a part that no other rank does."""
    parameters: Iterator[tuple[str, Any]] = model.named_parameters()
    for name, p in parameters:
        if stage == 0:
            found = SteppedRange(name, 0, p, 0, p.numel())
        elif stage == 3:
            group, offset, size = zero.grad_position[zero.get_param_id(p)]
            start = size * zero._get_param_partition_rank(p)
            # The last rank's run is filled up to the others' length.
            count = max(0, min(size, p.ds_numel - start))
            found = SteppedRange(name, start, zero.fp32_partitioned_groups_flat[group], offset, count)
        elif p._hp_mapping is not None:
            part, own = p._hp_mapping.lp_fragment_address, p._hp_mapping.hp_fragment_address
            owner = zero.single_partition_of_fp32_groups[p._hp_mapping.param_group_index]
            found = SteppedRange(name, part.start, owner, own.start, part.numel)
        else:
            continue
        if found.count:
            yield found


def shared(stepped: list[SteppedRange]) -> list[SteppedRange]:
    """This rank's even share of the elements that every rank steps."""
    mine, begin, found = share(sum(r.count for r in stepped)), 0, []
    for r in stepped:
        first, last = max(mine.start - begin, 0), min(mine.stop - begin, r.count)
        if first < last:
            found.append(replace(r, start=r.start + first, offset=r.offset + first, count=last - first))
        begin += r.count
    return found


def update_module(zero: Any, model: Model, stage: int, stepped: list[SteppedRange]) -> None:
    """Give the network that computes, which ZeRO keeps beside them, the weights that the ranks step."""
    if stage in (1, 2):
        zero.update_lp_params()
    elif stage == 3:
        if zero.persistent_parameters:
            zero.persistent_parameters[0].partition(zero.persistent_parameters)
        by_name: dict[str, Any] = dict(model.named_parameters())
        for r in stepped:
            by_name[r.parameter].ds_tensor.view(-1)[: r.count].copy_(r.of(r.owner.data))
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
