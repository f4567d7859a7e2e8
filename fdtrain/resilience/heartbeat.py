"""Signs of life between the ranks: which one is dead, stopped or cut off, reported by every other that must end for it.

A broken connection does not name who broke it, and a stopped process breaks none; on GPUs the main program may wait for
either in the device, for ever. So each rank leaves a sign every second or two in the store by which the ranks meet,
which is run by rank 0's process (or by the agent of torchrun on its host). Rank 0 watches all, the others watch rank 0
and listen for its verdict: the work grows with the number of ranks, not with its square. Whoever cannot reach the store
has lost rank 0's host.

The verdict on the signs is :mod:`fdtrain.resilience.verdict`'s; here they are written, read and acted upon.
"""

import itertools
import json
import os
import platform
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType

import torch
from torch._C._distributed_c10d import Store

from fdtrain import distributed
from fdtrain.errors import LostPeer, Preempted, tell_error
from fdtrain.resilience.signals import SIGNALS
from fdtrain.resilience.verdict import Limits, Observation, RankState, Sign, Verdict, judge, observe

AGAIN = "Launch again with --resume auto."
PLACE = "fdtrain"
"""In the store, which serves one attempt (:func:`fdtrain.distributed.check_launcher`). Not by torchrun's count of
restarts: on a host that learns of another's failure before it sees its own ranks end, that stays behind."""
NOTHING = "-"
"""In the store, where nothing has been written yet."""
HOLD_BACK_SECONDS = 12
"""That a rank leaves to one that has an error of its own, to say it."""


@contextmanager
def process_group(limits: Limits, again: str = AGAIN) -> Iterator[tuple[torch.device, "Heartbeat"]]:
    """Around all that the processes of a launch do together: this rank's device, and its heartbeat.

    The heartbeat begins before the process group does, so that there is no moment at which a lost rank would not be
    noticed. One process alone makes a group of one.

    Args:
        again: a sentence that says how to go on.

    Raises:
        LostPeer: rank 0 has not come. Of a rank that is lost later the heartbeat tells, and ends the process.
    """
    store = distributed.open_store(limits.joining)
    with Heartbeat(limits, again) as beat:
        beat.meet(store)
        with distributed.connected(limits.collective, store) as device:
            yield device, beat


class Heartbeat:
    """A context around what the ranks do together, on every rank. With one rank it does nothing.

    Inside, a rank that finds another lost ends its process with one line that names it, from a thread, for the main
    program may hang in a call that cannot be interrupted, such as one that waits for a GPU. It does the same when an
    error of a connection reaches the context.
    """

    def __init__(self, limits: Limits, again: str = AGAIN):
        self.limits, self.again = limits, again
        self._name = f"rank {distributed.rank()} (process {os.getpid()} on {platform.node()})"
        self._progress, self._state = 0, RankState.WORKING
        self._end, self._wake = threading.Event(), threading.Event()
        self._ending = threading.Lock()
        """Held by whatever ends this process, or its membership."""
        self._written: RankState | None = None
        self._broken = False
        self._verdict: Verdict | None = None
        self._disconnected: float | None = None

    def tick(self) -> None:
        """Something that the ranks do in the same order is done: who has the fewest of these holds up the others."""
        self._progress += 1

    def meet(self, store: Store) -> None:
        """Wait until every rank has come; later calls to the store may wait for as long as any call between ranks.

        Raises:
            RuntimeError: not all have, within the limit.
        """
        if distributed.world_size() > 1:
            if store.add(f"{PLACE}/come", 1) == distributed.world_size():
                store.set(f"{PLACE}/all", "")
            store.wait([f"{PLACE}/all"], timedelta(seconds=self.limits.joining))
            store.set_timeout(timedelta(seconds=self.limits.collective))

    def __enter__(self) -> "Heartbeat":
        if distributed.world_size() > 1:
            self._begin()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if distributed.world_size() == 1:
            return
        if distributed.is_lost_connection(error):
            # A launcher ends all ranks by signals when it sees one gone.
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            self._disconnect()
            # Whose fault it is, _judge finds out, and ends this process.
            threading.Event().wait()
        self._leave(RankState.DONE if error is None or isinstance(error, Preempted) else RankState.FAILED)

    def _begin(self) -> None:
        self._store = distributed.open_store(self.limits.heartbeat, serve=False)
        self._key, self._verdict_key = f"{PLACE}/{distributed.rank()}", f"{PLACE}/verdict"
        others = range(1, distributed.world_size()) if distributed.rank() == 0 else [0]
        self._observed: dict[int, Observation | None] = dict.fromkeys(others)
        self._keys = [*(f"{PLACE}/{rank}" for rank in others), self._verdict_key]
        self._last_reply = time.monotonic()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._beat, self._judge)]
        for thread in self._threads:
            thread.start()

    def _beat(self) -> None:
        """Leave signs and look for those of others. A thread of its own, for a call to the store may hang."""
        try:
            for key in self._keys:
                # Reading a key that is not there would wait for it.
                self._store.compare_set(key, "", NOTHING)
            for count in itertools.count():
                ended = self._end.is_set()
                self._exchange(Sign(self._name, count, self._progress, self._state))
                if ended:
                    return
                self._wake.wait(self.limits.interval)
                self._wake.clear()
        except RuntimeError:
            # The connection does not come back. What follows from that is for _judge.
            self._broken = True

    def _exchange(self, own: Sign) -> None:
        self._store.set(self._key, json.dumps(own))
        self._written = own.state
        if distributed.rank() == 0 and self._verdict:
            self._store.set(self._verdict_key, json.dumps(self._verdict))
        *signs, verdict = (value.decode() for value in self._store.multi_get(self._keys))
        now = self._last_reply = time.monotonic()
        for rank, sign in zip(self._observed, signs, strict=True):
            if sign != NOTHING:
                self._observed[rank] = observe(self._observed[rank], Sign(*json.loads(sign)), now)
        if verdict != NOTHING:
            self._verdict = self._verdict or Verdict(*json.loads(verdict))

    def _judge(self) -> None:
        before = time.monotonic()
        while not self._end.wait(self.limits.interval / 2):
            now = time.monotonic()
            if now - before > self.limits.heartbeat / 2:
                # This process itself was stopped: what it has not seen meanwhile says nothing.
                self._last_reply = now
                self._observed = {
                    rank: observed and observed._replace(since=now) for rank, observed in self._observed.items()
                }
            before = now
            if self._state == RankState.WORKING and distributed.failed_on_device():
                self._disconnect()
            own = Observation(Sign(self._name, 0, self._progress, self._state), now, self._disconnected)
            ranks = {**self._observed, distributed.rank(): own}
            own_verdict = judge(distributed.rank(), ranks, self._last_reply, self._broken, now, self.limits)
            if verdict := self._verdict or own_verdict:
                self._decide(verdict)
                return

    def _decide(self, verdict: Verdict) -> None:
        """End this process, unless it is leaving with an error of its own."""
        if not self._ending.acquire(blocking=False):
            return
        self._verdict = verdict
        self._pass_on(RankState.FAILED)
        if verdict.failed and f" on {platform.node()})" in verdict.reason:
            # It says why where this process would. Whoever ends first gives a launcher its exit code, too.
            time.sleep(HOLD_BACK_SECONDS)
        else:
            tell_error(f"{verdict.reason} {self.again}")
        os._exit(LostPeer.code)

    def _disconnect(self) -> None:
        self._disconnected, self._state = self._disconnected or time.monotonic(), RankState.DISCONNECTED
        self._wake.set()

    def _leave(self, state: RankState) -> None:
        self._ending.acquire(blocking=False)
        self._pass_on(state)
        self._end.set()
        self._wake.set()
        for thread in self._threads:
            # The interpreter must not end with one within a call, unless that hangs for good.
            thread.join(self.limits.interval)

    def _pass_on(self, state: RankState) -> None:
        """Let the others learn how this rank ends. Rank 0 stays until they have, for the store may end with it."""
        self._state, interval = state, self.limits.interval
        deadline = time.monotonic() + (self.limits.heartbeat if state == RankState.DONE else 4 * interval)
        while time.monotonic() < deadline:
            self._wake.set()
            time.sleep(interval / 20)
            fresh = time.monotonic() - 3 * interval
            staying = any(
                observed and observed.present and observed.since > fresh for observed in list(self._observed.values())
            )
            if self._broken or (self._written == state and not (distributed.rank() == 0 and staying)):
                return
