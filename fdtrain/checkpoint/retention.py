"""Which checkpoints, and which snapshots of the averages, stay on the disk."""

from pathlib import Path

from fdtrain.checkpoint.soundness import trouble
from fdtrain.checkpoint.store import CHECKPOINTS, committed, delete, point_latest_to, read_state, step_of

HEALTHY = 2
"""Checkpoints without trouble that retention never deletes: one to go on from, and one in case that is damaged."""


def retain(written: Path, keep_last: int, keep_every: int | None) -> None:
    """Delete older checkpoints than the one just ``written``.

    What stays: the last ``keep_last`` up to it, those at multiples of ``keep_every`` steps, and the newest without
    trouble (:func:`fdtrain.checkpoint.soundness.trouble`), of all and of the scheduled ones, to which alone a run
    rolls back. Later ones, which a resumed run passed over, are not its own.
    """
    own = [path for path in committed(written.parent.parent) if step_of(path) <= step_of(written)]
    healthy = [path for path in own if trouble(path) is None]
    scheduled = [path for path in healthy if read_state(path).scheduled]
    stay = {*own[:keep_last], *healthy[:HEALTHY], *scheduled[:HEALTHY]}
    for path in own:
        if path not in stay and not (keep_every and step_of(path) % keep_every == 0):
            delete(path)


def roll_back_to(checkpoint: Path) -> None:
    """Make a checkpoint the newest of its run."""
    point_latest_to(checkpoint)
    forget_after(checkpoint.parent.parent, step_of(checkpoint), CHECKPOINTS)


def forget_after(run: Path, step: int, series: str) -> None:
    """Delete what a run has of later steps: it goes on from ``step``, and may train other weights."""
    for path in committed(run, series):
        if step_of(path) > step:
            delete(path)
