"""Search for the monotone grid of times with the least distance, whatever the distance is."""

from collections.abc import Callable, Sequence

FIRST_MOVE = 0.5
"""Of a time, as a share of the way to its neighbour; halved when a round finds nothing."""


def search(
    distance: Callable[[tuple[float, ...]], float], starts: Sequence[tuple[float, ...]], rounds: int
) -> tuple[tuple[float, ...], float]:
    """Pattern search: one inner time after the other moves towards a neighbour, as long as that helps.

    A time stays between its neighbours, so that every grid on the way falls strictly. The search draws nothing.

    Args:
        distance: of the solver's result on a grid, from what it should be; not a number counts as infinite.
        starts: grids of equal length.
        rounds: over all inner times.

    Returns:
        The best grid and its distance.
    """

    def measured(times: tuple[float, ...]) -> float:
        value = distance(times)
        return value if value == value else float("inf")

    best, times = min((measured(times), times) for times in starts)
    move = FIRST_MOVE
    for _ in range(rounds):
        improved = False
        for i in range(1, len(times) - 1):
            for neighbour in (times[i - 1], times[i + 1]):
                moved = (*times[:i], times[i] + move * (neighbour - times[i]), *times[i + 1 :])
                value = measured(moved)
                if value < best:
                    best, times, improved = value, moved, True
                    break
        if not improved:
            move /= 2
    return times, best
