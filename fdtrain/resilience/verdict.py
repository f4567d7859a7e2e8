"""Whether a run can go on, judged from the signs of life that ranks leave, and from the clock: a pure function of both.

Nothing here reads a clock or communicates; :mod:`fdtrain.resilience.heartbeat` does.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

NAMED = 8
"""Ranks that a message names one by one; the rest are counted."""


class RankState(StrEnum):
    """Of a rank, as its sign has it."""

    WORKING = "working"
    DISCONNECTED = "disconnected"
    """A call between ranks has failed, and the rank waits to learn whose fault that was."""
    FAILED = "failed"
    """It ends by an error of its own."""
    DONE = "done"


class Sign(NamedTuple):
    """What a rank leaves in the store: ``number`` grows with every sign, ``progress`` with the work done."""

    name: str
    number: int = 0
    progress: int = 0
    state: RankState = RankState.WORKING


class Observation(NamedTuple):
    """The last sign of a rank; when it came, and when the rank first said that it is disconnected (seconds)."""

    sign: Sign
    since: float
    disconnected: float | None = None

    @property
    def present(self) -> bool:
        return self.sign.state in (RankState.WORKING, RankState.DISCONNECTED)


def observe(before: Observation | None, sign: Sign, now: float) -> Observation:
    """The observation of a rank after ``sign`` was read, which may be the one that was read before."""
    if before is not None and before.sign == sign:
        return before
    disconnected = before.disconnected if before is not None else None
    if disconnected is None and sign.state == RankState.DISCONNECTED:
        disconnected = now
    return Observation(sign, now, disconnected)


class Limits(NamedTuple):
    """Seconds: without a sign after which a rank is given up (``heartbeat``), that a call between ranks waits for one
    that is alive (``collective``), and within which all ranks come (``joining``)."""

    heartbeat: float
    collective: float
    joining: float

    @property
    def interval(self) -> float:
        """Between two signs."""
        return min(2.0, self.heartbeat / 6)

    @property
    def short(self) -> float:
        """Without a sign where a connection is known to be broken: three missing signs will do."""
        return min(self.heartbeat, 3 * self.interval)


class Verdict(NamedTuple):
    """Why the run cannot go on, and whether ranks have ended by errors of their own, which they tell."""

    reason: str
    failed: bool = False


UNKNOWN = Verdict(
    "the connection to another process of this run was lost, and none is known to have ended: the network failed for "
    "a moment, or a GPU does not answer."
)
"""All are alive and equally far, and yet a call between them has failed; or nobody is left who could tell."""


def judge(
    rank: int, ranks: Mapping[int, Observation | None], last_reply: float, broken: bool, now: float, limits: Limits
) -> Verdict | None:
    """Why ``rank`` must end now, or None.

    Args:
        ranks: itself, and those that it watches: rank 0 all, another rank only rank 0, from whom it also learns of
            the rest. None: has left no sign yet.
        last_reply: when the store last answered.
        broken: the connection to the store has failed for good.
    """
    others = {r: observed for r, observed in ranks.items() if r != rank}
    present = {r: observed for r, observed in others.items() if observed is not None and observed.present}
    failed = [r for r, observed in others.items() if observed is not None and observed.sign.state == RankState.FAILED]
    disconnected = min((h.disconnected for h in ranks.values() if h and h.disconnected is not None), default=None)
    limit = limits.heartbeat if disconnected is None and not broken else limits.short
    if failed:
        return Verdict(f"{_names(ranks, failed)} ended with an error; its own output says why.", True)
    # The store is on rank 0's host.
    if rank != 0 and now - last_reply > limit and (ranks[0] is None or ranks[0].present):
        return Verdict(
            f"lost {_names(ranks, [0])}: no answer from its host for {now - last_reply:.0f} s. Killed, stopped or "
            "cut off, unless it is this host that is cut off."
        )
    silent = [r for r, observed in present.items() if now - observed.since > limit]
    if silent:
        seconds = max(now - present[r].since for r in silent)
        return Verdict(
            f"lost {_names(ranks, silent)}: no sign of life for {seconds:.0f} s. Killed, stopped or cut off."
        )
    if disconnected is None:
        return None
    missing = [r for r, observed in others.items() if observed is None]
    # Rank 0 knows more of the others.
    patience = 2 * limit if rank == 0 else 3 * limit
    if missing and now - disconnected > patience:
        return Verdict(
            f"the processes of this run have not all come together within {limits.joining:g} s: "
            f"{_names(ranks, missing)} never came. See what became of the others."
        )
    if rank == 0 and now - disconnected > patience:
        if (own := ranks[rank]) is not None:
            present[rank] = own
        least = min(observed.sign.progress for observed in present.values())
        late = [r for r, observed in sorted(present.items()) if observed.sign.progress == least]
        if len(late) == len(present):
            return UNKNOWN
        return Verdict(
            f"{_names(ranks, late)} held up the others for longer than training.collective_timeout_s "
            f"({limits.collective:g} s), though alive."
        )
    # Rank 0 would have told, and has ended.
    return UNKNOWN if now - disconnected > limits.heartbeat + 8 * limits.interval else None


def _names(ranks: Mapping[int, Observation | None], chosen: list[int]) -> str:
    named = [observed.sign.name if (observed := ranks[r]) is not None else f"rank {r}" for r in chosen[:NAMED]]
    return ", ".join(named + [f"{len(chosen) - NAMED} more"] * (len(chosen) > NAMED))
