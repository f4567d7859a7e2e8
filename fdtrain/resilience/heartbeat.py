"""Signs of life between the ranks: which one is dead, stopped or cut off, said by every other that must end for it.

A broken connection does not name who broke it, and a stopped process breaks none. So each rank leaves a sign every
second or two in the store of the process group, which is kept by rank 0's process (or by the agent of torchrun on its
host). Rank 0 watches all, the others watch rank 0 and listen for its verdict: the work grows with the number of ranks,
not with its square. Whoever cannot reach the store has lost rank 0's host.
"""

import json
import os
import platform
import signal
import sys
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from uuid import uuid4

import torch.distributed as dist

from fdtrain import distributed
from fdtrain.errors import HOLD_BACK_SECONDS, LOST_PEER_CODE, LostPeer, Preempted
from fdtrain.resilience.signals import SIGNALS

LIVES, DOUBTS, FAILED, DONE = "lives", "doubts", "failed", "done"
"""What a rank's sign says of it: at work; its connections are broken; ended by an error of its own; ended well."""
AGAIN = "Launch again with --resume auto."


@dataclass
class Seen:
    """Of another rank: its last sign, and when (``time.monotonic``) it last changed."""

    sign: str
    since: float

    @property
    def progress(self) -> int:
        return int(self.sign.split()[1])

    @property
    def state(self) -> str:
        return self.sign.split()[2]


class Heartbeat:
    """A context around what the ranks do together, on every rank. With one rank it does nothing.

    Inside, a rank that finds another lost ends its process with one line that names it, for it may hang in a call
    that cannot be interrupted. An error of a connection that reaches the context becomes a LostPeer with the name.

    Args:
        silence: seconds without a sign after which a rank is given up.
    """

    def __init__(self, silence: float):
        self.silence = silence
        self.interval = min(2.0, silence / 6)
        self._progress, self._state = 0, LIVES
        self._end, self._decided, self._wake = threading.Event(), threading.Event(), threading.Event()
        self._speaks = threading.Lock()
        self._left_state, self._broken = "", False
        self._said = self._verdict = ""
        self._doubted: float | None = None

    def tick(self) -> None:
        """Something that the ranks do in the same order is done: who has the fewest of these holds up the others."""
        self._progress += 1

    def __enter__(self) -> "Heartbeat":
        if distributed.world_size() > 1:
            self._begin()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if distributed.world_size() == 1:
            return
        try:
            if distributed.is_lost_connection(error):
                raise self._diagnose() from error
        finally:
            self._leave(DONE if error is None or isinstance(error, Preempted) else FAILED)

    def _begin(self) -> None:
        who = f"rank {distributed.rank()} (process {os.getpid()} on {platform.node()})"
        self.names: list[str] = [""] * distributed.world_size()
        dist.all_gather_object(self.names, who)
        # A store may outlive an attempt: the agent's of torchrun does.
        attempt = distributed.broadcast(uuid4().hex)
        self._keys = [f"fdtrain/{attempt}/{rank}" for rank in range(distributed.world_size())]
        self._verdict_key = f"fdtrain/{attempt}/verdict"
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._store = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=self.silence))
        self._leave_sign(0)
        if distributed.rank() == 0:
            self._store.set(self._verdict_key, "")
        dist.barrier()
        now = time.monotonic()
        others = range(1, distributed.world_size()) if distributed.rank() == 0 else [0]
        self._seen = {rank: Seen(f"0 0 {LIVES}", now) for rank in others}
        self._heard = now
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._beat, self._judge)]
        for thread in self._threads:
            thread.start()

    def _leave_sign(self, count: int) -> None:
        state = self._state
        self._store.set(self._keys[distributed.rank()], f"{count} {self._progress} {state}")
        self._left_state = state

    def _beat(self) -> None:
        """Leave signs and look for those of others. A thread of its own, for a call to the store may hang."""
        count = 0
        while True:
            ended = self._end.is_set()
            count += 1
            try:
                self._leave_sign(count)
                if distributed.rank() == 0 and self._said:
                    self._store.set(self._verdict_key, self._said)
                *signs, said = self._store.multi_get([*(self._keys[r] for r in self._seen), self._verdict_key])
            except RuntimeError:
                # It will not mend. What follows from its silence is for _judge.
                self._broken = True
                return
            now = self._heard = time.monotonic()
            for seen, sign in zip(self._seen.values(), signs, strict=True):
                if seen.sign != sign.decode():
                    seen.sign, seen.since = sign.decode(), now
            self._said = self._said or said.decode()
            if ended:
                return
            self._wake.wait(self.interval)
            self._wake.clear()

    def _judge(self) -> None:
        before = time.monotonic()
        while not self._end.wait(self.interval / 2):
            now = time.monotonic()
            if now - before > self.silence / 2:
                # This process itself was stopped: what it has not seen meanwhile says nothing.
                self._heard = now
                for seen in self._seen.values():
                    seen.since = now
            before = now
            if verdict := self._said or self._found(now):
                self._decide(verdict)
                return

    def _found(self, now: float) -> str:
        """A verdict, as JSON of (kind, text), or nothing."""
        if self._doubted is None and any(seen.state == DOUBTS for seen in self._seen.values()):
            self._doubted = now
        # Where a connection is broken already, three missing signs will do.
        limit = self.silence if self._doubted is None else min(self.silence, 3 * self.interval)
        at_work = {rank: seen for rank, seen in self._seen.items() if seen.state in (LIVES, DOUBTS)}
        failed = [rank for rank, seen in self._seen.items() if seen.state == FAILED]
        if failed:
            return json.dumps([FAILED, f"{self._list(failed)} ended with an error; its own output says why."])
        if distributed.rank() != 0 and at_work and now - self._heard > limit:
            text = (
                f"lost {self.names[0]}: no answer from {os.environ['MASTER_ADDR']} for {now - self._heard:.0f} s. "
                "Killed, stopped or cut off, unless it is this host that is cut off."
            )
            return json.dumps([LIVES, text])
        silent = [rank for rank, seen in at_work.items() if now - seen.since > limit]
        if silent:
            quiet = max(now - at_work[rank].since for rank in silent)
            text = f"lost {self._list(silent)}: no sign of life for {quiet:.0f} s. Killed, stopped or cut off."
            return json.dumps([LIVES, text])
        if distributed.rank() == 0 and self._doubted is not None and now - self._doubted > 2 * limit:
            return json.dumps([LIVES, self._behind()])
        return ""

    def _behind(self) -> str:
        """Everybody is alive, and yet a call between ranks has failed."""
        progress = {0: self._progress} | {rank: seen.progress for rank, seen in self._seen.items()}
        least = [rank for rank, done in progress.items() if done == min(progress.values())]
        if len(least) < len(progress):
            return (
                f"{self._list(least)} held up the others for longer than training.collective_timeout_s, though alive."
            )
        return "a connection between ranks broke, though all processes are alive: the network failed for a moment."

    def _read(self, verdict: str) -> str:
        """What to say of it: nothing of one whose own output is to be seen, on this host."""
        kind, text = json.loads(verdict)
        seen = kind == FAILED and f" on {platform.node()}) ended" in text
        return "" if seen else f"{text} {AGAIN}"

    def _list(self, found: list[int]) -> str:
        more = f" and {len(found) - 8} more" if len(found) > 8 else ""
        return ", ".join(self.names[rank] for rank in found[:8]) + more

    def _decide(self, verdict: str) -> None:
        self._said = self._verdict = verdict
        self._decided.set()
        if not self._speaks.acquire(blocking=False):
            # The main program waits for this in _diagnose, or is leaving with an error of its own.
            return
        self._state = FAILED
        self._pass_on()
        if text := self._read(verdict):
            print(f"fdtrain: error (rank {distributed.rank()}): {text}", file=sys.stderr, flush=True)
        else:
            # Whoever ends first gives a launcher its exit code: that is for the rank that knows why.
            time.sleep(HOLD_BACK_SECONDS)
        os._exit(LOST_PEER_CODE)

    def _diagnose(self) -> LostPeer:
        """Whom a broken connection is owed to; waits until that is clear."""
        # The launcher ends all ranks when it sees one gone. It grants them half a minute.
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        if not self._speaks.acquire(blocking=False):
            # _decide was quicker, and ends this process.
            threading.Event().wait()
        self._doubted, self._state = self._doubted or time.monotonic(), DOUBTS
        self._wake.set()
        if not self._decided.wait(self.silence + 8 * self.interval):
            return LostPeer(f"the connection to another process of this run was lost. {AGAIN}")
        return LostPeer(self._read(self._verdict), named=True)

    def _leave(self, state: str) -> None:
        self._speaks.acquire(blocking=False)
        self._state = state
        self._pass_on()
        self._end.set()
        self._wake.set()
        for thread in self._threads:
            # The interpreter must not end with one within a call, unless that hangs for good.
            thread.join(self.interval)

    def _pass_on(self) -> None:
        """Let the others learn how this rank ends. Rank 0 stays until they have, for the store may end with it."""
        deadline = time.monotonic() + (self.silence if self._state == DONE else 4 * self.interval)
        while time.monotonic() < deadline:
            self._wake.set()
            time.sleep(self.interval / 20)
            staying = [seen for seen in self._seen.values() if seen.state in (LIVES, DOUBTS)]
            present = any(time.monotonic() - seen.since < 3 * self.interval for seen in staying)
            if self._broken or (self._left_state == self._state and not (distributed.rank() == 0 and present)):
                return
