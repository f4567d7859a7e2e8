"""Flags that any rank may raise and that all ranks act upon after the same step."""

from collections.abc import Iterable
from datetime import timedelta
from queue import Empty, SimpleQueue

import torch
import torch.distributed as dist

from fdtrain import distributed


class Consensus:
    """One tiny maximum over the ranks each step, on the CPU and under way during the step, so nothing waits for it.

    Every rank must make it, and exchange, equally often, waiting for the others up to ``patience`` seconds.
    """

    def __init__(self, names: Iterable[str], patience: float = distributed.PATIENCE):
        self.names = tuple(names)
        # Unlike a set's, its methods may meet anywhere: in a signal's handler, or between threads.
        self._raised: SimpleQueue[str] = SimpleQueue()
        self._flags = torch.zeros(len(self.names), dtype=torch.uint8)
        self._group = self._work = None
        if distributed.world_size() > 1:
            # Of its own: on the ranks' common group it would wait its turn behind the gradients.
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=patience))

    def raise_flag(self, name: str) -> None:
        """Raise a flag, from any thread or signal handler; :meth:`exchange` returns it once, on every rank."""
        self._raised.put(name)

    def exchange(self) -> frozenset[str]:
        """Once a step: the flags that any rank had raised by the exchange before, the same on every rank.

        A single process gets the flags that it has just raised.

        Raises:
            RuntimeError: another rank is gone, or has not come for ``patience`` seconds.
        """
        raised = self._flags_raised()
        if self._group is None:
            return self._names(raised)
        if self._work is not None:
            self._work.wait()
        agreed = self._names(self._flags)
        self._flags = raised
        self._work = dist.all_reduce(self._flags, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return agreed

    def _flags_raised(self) -> torch.Tensor:
        """Since the last call."""
        flags = torch.zeros(len(self.names), dtype=torch.uint8)
        try:
            while True:
                flags[self.names.index(self._raised.get_nowait())] = 1
        except Empty:
            return flags

    def _names(self, flags: torch.Tensor) -> frozenset[str]:
        return frozenset(name for name, flag in zip(self.names, flags.tolist(), strict=True) if flag)
