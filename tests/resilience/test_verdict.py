"""The verdict, as a table: what the signs and the clock say, on each rank."""

import pytest

from fdtrain.resilience.verdict import Limits, Loss, Observation, RankState, Sign, Verdict, judge, observe

NOW = 1000.0
# A sign every two seconds; six seconds where a connection is broken.
LIMITS = Limits(heartbeat=60, collective=600, joining=300)


def observed(rank, age=1.0, progress=7, state=RankState.WORKING, disconnected=None):
    """The last sign of a rank, ``age`` seconds old; disconnected for so many."""
    since = None if disconnected is None else NOW - disconnected
    if disconnected is not None and state == RankState.WORKING:
        state = RankState.DISCONNECTED
    return Observation(Sign(f"rank {rank} (p{rank} on host)", 3, progress, state), NOW - age, since)


def verdict(rank, *ranks, last_reply=0.5, broken=False):
    """Of ``rank``, where every other one of ``ranks`` is watched; ``last_reply`` seconds ago by the store."""
    return judge(rank, dict(enumerate(ranks)), NOW - last_reply, broken, NOW, LIMITS)


@pytest.mark.parametrize(
    ("rank", "ranks", "store", "loss", "blamed"),
    [
        # Nothing wrong, however far a rank is, and at the edge of the time allowed.
        (0, [observed(0), observed(1), observed(2)], {}, None, []),
        (0, [observed(0), observed(1, progress=0)], {}, None, []),
        (0, [observed(0), observed(1, age=60)], {}, None, []),
        (1, [observed(0), observed(1)], {"last_reply": 60}, None, []),
        # Silent beyond it.
        (0, [observed(0), observed(1, age=61), observed(2)], {}, Loss.SILENT, [1]),
        (0, [observed(0), observed(1, age=61), observed(2, age=70)], {}, Loss.SILENT, [1, 2]),
        (1, [observed(0, age=61), observed(1)], {}, Loss.SILENT, [0]),
        # Once a connection is known to be broken, three signs that lack are enough; two are not.
        (0, [observed(0, disconnected=1), observed(1, age=7)], {}, Loss.SILENT, [1]),
        (0, [observed(0, disconnected=1), observed(1, age=5)], {}, None, []),
        (0, [observed(0), observed(1, age=7), observed(2, disconnected=1)], {}, Loss.SILENT, [1]),
        (1, [observed(0, age=7), observed(1, disconnected=1)], {}, Loss.SILENT, [0]),
        # The store: without an answer, and with a connection that is broken for good.
        (1, [observed(0, age=61), observed(1)], {"last_reply": 61}, Loss.UNREACHABLE, [0]),
        (1, [observed(0, age=7), observed(1)], {"last_reply": 7, "broken": True}, Loss.UNREACHABLE, [0]),
        (1, [observed(0, age=5), observed(1)], {"last_reply": 5, "broken": True}, None, []),
        (1, [None, observed(1)], {"last_reply": 7, "broken": True}, Loss.UNREACHABLE, [0]),
        # Who has ended is not lost: well, or by an error of its own, which goes before all else.
        (0, [observed(0), observed(1, age=500, state=RankState.DONE)], {}, None, []),
        (1, [observed(0, age=500, state=RankState.DONE), observed(1)], {"last_reply": 500, "broken": True}, None, []),
        (0, [observed(0), observed(1, age=500, state=RankState.FAILED), observed(2, age=500)], {}, Loss.FAILED, [1]),
        (1, [observed(0, age=500, state=RankState.FAILED), observed(1)], {"last_reply": 500}, Loss.FAILED, [0]),
        # Not come yet is no loss before a call has waited for it in vain.
        (0, [observed(0), observed(1), None], {}, None, []),
        (0, [observed(0, disconnected=11), observed(1), None], {}, None, []),
        (0, [observed(0, disconnected=13), observed(1), None], {}, Loss.MISSING, [2]),
        (0, [observed(0), observed(1, disconnected=13), None], {}, Loss.MISSING, [2]),
        (1, [None, observed(1, disconnected=13)], {}, None, []),
        (1, [None, observed(1, disconnected=19)], {}, Loss.MISSING, [0]),
        # All alive, a call has failed: whoever is behind holds up the others. Only rank 0 sees all.
        (0, [observed(0), observed(1, progress=6), observed(2, disconnected=13)], {}, Loss.LATE, [1]),
        (0, [observed(0, progress=6), observed(1), observed(2, disconnected=13)], {}, Loss.LATE, [0]),
        (0, [observed(0), observed(1, progress=6), observed(2, disconnected=11)], {}, None, []),
        (0, [observed(0, disconnected=13), observed(1), observed(2)], {}, Loss.UNKNOWN, []),
        (1, [observed(0), observed(1, progress=6, disconnected=75)], {}, None, []),
        (1, [observed(0), observed(1, progress=6, disconnected=77)], {}, Loss.UNKNOWN, []),
        # Who has ended well is not waited for.
        (
            0,
            [observed(0), observed(1, progress=1, state=RankState.DONE), observed(2, disconnected=13)],
            {},
            Loss.UNKNOWN,
            [],
        ),
    ],
)
def test_the_verdict(rank, ranks, store, loss, blamed):
    found = verdict(rank, *ranks, **store)
    assert (found and found.loss) == loss
    if loss is not None:
        named = [f"rank {r}" if ranks[r] is None else ranks[r].sign.name for r in blamed]
        assert list(found.names) == named
        assert Verdict.decode(found.encode()) == found
        assert all(name in str(found) for name in named)


def test_a_sign_that_is_read_again_is_no_new_one():
    first = observe(None, Sign("rank 1", 1), 10.0)
    assert observe(first, Sign("rank 1", 1), 12.0) is first
    assert observe(first, Sign("rank 1", 2), 12.0) == Observation(Sign("rank 1", 2), 12.0)


def test_a_rank_is_disconnected_since_it_first_said_so():
    observed = None
    for count, state in enumerate([RankState.WORKING, RankState.DISCONNECTED, RankState.DISCONNECTED]):
        observed = observe(observed, Sign("rank 1", count, state=state), float(count))
    assert (observed.disconnected, observed.since) == (1.0, 2.0)


def test_signs_survive_the_store():
    sign = Sign("rank 1 (process 7 on höst)", 3, 4, RankState.DISCONNECTED)
    assert Sign.decode(sign.encode()) == sign


def test_of_many_ranks_the_first_are_named():
    lost = verdict(0, observed(0), *(observed(r, age=61) for r in range(1, 21)))
    for text in (str(lost), str(Verdict.decode(lost.encode()))):
        assert "rank 8 (p8 on host), 12 more: no sign of life for 61 s" in text
        assert "rank 9 " not in text
