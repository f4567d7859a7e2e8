"""The verdict, as a table: what the signs and the clock say, on each rank."""

import json

import pytest

from fdtrain.resilience.verdict import UNKNOWN, Limits, Observation, RankState, Sign, judge, observe

NOW = 1000.0
# A sign every two seconds; six seconds where a connection is broken.
LIMITS = Limits(heartbeat=60, collective=600, joining=300)
FAILED, DONE = RankState.FAILED, RankState.DONE
UNREACHABLE, SILENT, MISSING, LATE = "no answer from its host", "no sign of life", "never came", "held up the others"


def seen(rank, age=1.0, progress=7, state=RankState.WORKING, disconnected=None):
    """The last sign of a rank, ``age`` seconds old; disconnected for so many."""
    since = None if disconnected is None else NOW - disconnected
    if disconnected is not None:
        state = RankState.DISCONNECTED
    return Observation(Sign(f"rank {rank} (p{rank} on host)", 3, progress, state), NOW - age, since)


def verdict(rank, *ranks, last_reply=0.5, broken=False):
    """Of ``rank``, where every other one of ``ranks`` is watched; ``last_reply`` seconds ago by the store."""
    return judge(rank, dict(enumerate(ranks)), NOW - last_reply, broken, NOW, LIMITS)


@pytest.mark.parametrize(
    ("rank", "ranks", "store", "expected", "blamed"),
    [
        # Nothing wrong, however far a rank is, and at the edge of the time allowed.
        (0, [seen(0), seen(1, progress=0), seen(2, age=60)], {}, None, []),
        (1, [seen(0), seen(1)], {"last_reply": 60}, None, []),
        # Silent beyond it.
        (0, [seen(0), seen(1, age=61), seen(2, age=70)], {}, SILENT, [1, 2]),
        (1, [seen(0, age=61), seen(1)], {}, SILENT, [0]),
        # Once a connection is known to be broken, three signs that lack are enough; two are not.
        (0, [seen(0, disconnected=1), seen(1, age=7)], {}, SILENT, [1]),
        (0, [seen(0, disconnected=1), seen(1, age=5)], {}, None, []),
        (0, [seen(0), seen(1, age=7), seen(2, disconnected=1)], {}, SILENT, [1]),
        (1, [seen(0, age=7), seen(1, disconnected=1)], {}, SILENT, [0]),
        # The store: without an answer, and with a connection that is broken for good.
        (1, [seen(0, age=61), seen(1)], {"last_reply": 61}, UNREACHABLE, [0]),
        (1, [seen(0, age=7), seen(1)], {"last_reply": 7, "broken": True}, UNREACHABLE, [0]),
        (1, [seen(0, age=5), seen(1)], {"last_reply": 5, "broken": True}, None, []),
        (1, [None, seen(1)], {"last_reply": 7, "broken": True}, UNREACHABLE, [0]),
        # Who has ended is not lost: well, or by an error of its own, which goes before all else.
        (0, [seen(0), seen(1, age=500, state=DONE)], {}, None, []),
        (1, [seen(0, age=500, state=DONE), seen(1)], {"last_reply": 500, "broken": True}, None, []),
        (0, [seen(0), seen(1, age=500, state=FAILED), seen(2, age=500)], {}, "ended with an error", [1]),
        (1, [seen(0, age=500, state=FAILED), seen(1)], {"last_reply": 500}, "ended with an error", [0]),
        # Not come yet is no loss before a call has waited for it in vain.
        (0, [seen(0), seen(1), None], {}, None, []),
        (0, [seen(0, disconnected=11), seen(1), None], {}, None, []),
        (0, [seen(0), seen(1, disconnected=13), None], {}, MISSING, [2]),
        (1, [None, seen(1, disconnected=13)], {}, None, []),
        (1, [None, seen(1, disconnected=19)], {}, MISSING, [0]),
        # All alive, a call has failed: whoever is behind holds up the others. Only rank 0 sees all.
        (0, [seen(0), seen(1, progress=6), seen(2, disconnected=13)], {}, LATE, [1]),
        (0, [seen(0, progress=6), seen(1), seen(2, disconnected=13)], {}, LATE, [0]),
        (0, [seen(0), seen(1, progress=6), seen(2, disconnected=11)], {}, None, []),
        (0, [seen(0, disconnected=13), seen(1), seen(2)], {}, UNKNOWN.reason, []),
        (1, [seen(0), seen(1, progress=6, disconnected=75)], {}, None, []),
        (1, [seen(0), seen(1, progress=6, disconnected=77)], {}, UNKNOWN.reason, []),
        # Who has ended well is not waited for.
        (0, [seen(0), seen(1, progress=1, state=DONE), seen(2, disconnected=13)], {}, UNKNOWN.reason, []),
    ],
)
def test_the_verdict(rank, ranks, store, expected, blamed):
    found = verdict(rank, *ranks, **store)
    if expected is None:
        assert found is None
    else:
        assert expected in found.reason
        assert [r for r in range(len(ranks)) if f"rank {r}" in found.reason] == blamed
        assert found.failed == (expected == "ended with an error")


def test_what_is_observed_of_a_rank():
    """A sign that is read again is no new one; a rank is disconnected since it first said so."""
    states = [RankState.WORKING, RankState.DISCONNECTED, RankState.DISCONNECTED]
    found = None
    for count, state in enumerate(states):
        sign = Sign(*json.loads(json.dumps(Sign("rank 1 (process 7 on höst)", count, 4, state))))
        found = observe(found, sign, float(count))
        assert observe(found, sign, count + 0.5) is found
    assert found == Observation(Sign("rank 1 (process 7 on höst)", 2, 4, states[2]), since=2.0, disconnected=1.0)


def test_of_many_ranks_the_first_are_named():
    lost = verdict(0, seen(0), *(seen(r, age=61) for r in range(1, 21)))
    assert "rank 8 (p8 on host), 12 more: no sign of life for 61 s" in lost.reason
    assert "rank 9 " not in lost.reason
