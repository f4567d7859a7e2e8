"""Flags that any rank may raise and that all ranks act upon after the same step."""

from collections.abc import Iterable
from datetime import timedelta
from queue import Empty, SimpleQueue

import torch
import torch.distributed as dist

from fdtrain import distributed


class Consensus:
    """One tiny maximum over the ranks each step, on the CPU and under way during the step, so nothing waits for it.

    Every rank must make it, and exchange, equally often.

    Args:
        names: what may be told.
        patience: seconds that an exchange waits for the other ranks.
    """

    def __init__(self, names: Iterable[str], patience: float = distributed.PATIENCE):
        self.names = tuple(names)
        # Unlike a set's, its methods may meet anywhere: in a signal's handler, or between threads.
        self._told: SimpleQueue[str] = SimpleQueue()
        self._flags = torch.zeros(len(self.names), dtype=torch.uint8)
        self._group = self._work = None
        if distributed.world_size() > 1:
            # Of its own: on the ranks' common group it would wait its turn behind the gradients.
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=patience))

    def raise_flag(self, name: str) -> None:
        """Raise a flag, from any thread or signal handler; :meth:`exchange` will say so once, on every rank."""
        if name not in self.names:
            raise ValueError(f"no flag '{name}'; there are {', '.join(self.names)}")
        self._told.put(name)

    def exchange(self) -> frozenset[str]:
        """Once a step: what any rank had told by the exchange before, the same on every rank.

        Raises:
            RuntimeError: another rank is gone, or has not come for ``patience`` seconds.
        """
        if self._work is not None:
            self._work.wait()
        agreed = frozenset(name for name, flag in zip(self.names, self._flags.tolist(), strict=True) if flag)
        self._flags = torch.zeros_like(self._flags)
        try:
            while True:
                self._flags[self.names.index(self._told.get_nowait())] = 1
        except Empty:
            pass
        if self._group is not None:
            self._work = dist.all_reduce(self._flags, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return agreed
