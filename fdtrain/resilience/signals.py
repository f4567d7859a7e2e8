"""Requests of a scheduler or a user that a run end: SIGTERM, SIGUSR1 (SLURM's warning), Ctrl-C, a closed terminal."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fdtrain import distributed
from fdtrain.errors import NotSaved, Preempted

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
SAME_SECONDS = 2.0
"""Signals within this time of the first are the same one: a Ctrl-C comes from the terminal and the launcher."""


@contextmanager
def handled(stop: Callable[[], None], effect: str) -> Iterator[None]:
    """Call ``stop`` (from a thread) at the first signal, and end the process with 128 + its number at a later one.

    A thread answers, so that a process that is in a long call, or hangs in one, says at once what the signal will do
    (``effect``), and can be ended. Afterwards the signals have their default effect again; but a process that ends as
    it was asked to, or because another is lost, ignores them, for its launcher, which sees one rank gone, ends the
    others by signals as well.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    # Answered even where a shell had it ignored, as it does with SIGINT of its background jobs; but for nohup's.
    answers = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    for number in answers:
        # The number goes through the pipe.
        signal.signal(number, lambda *_: None)
    thread = threading.Thread(target=_answer, args=(reader, stop, effect), daemon=True)
    thread.start()
    try:
        yield
    finally:
        error = sys.exception()
        ended_by_others = isinstance(error, Preempted | NotSaved) or distributed.is_lost_connection(error)
        after = signal.SIG_IGN if ended_by_others else signal.SIG_DFL
        for number in answers:
            signal.signal(number, after)
        signal.set_wakeup_fd(before)
        os.write(writer, b"\0")
        thread.join()
        os.close(reader)
        os.close(writer)


@contextmanager
def interruptible(stop: Callable[[], None], effect: str) -> Iterator[None]:
    """:func:`handled` in a program that is not ours: Ctrl-C alone, whose second one is that program's again.

    Nothing off the main thread, which Ctrl-C does not reach.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(number: int, frame: object) -> None:
        signal.signal(number, before)
        stop()
        # The main thread may be within a line of its own, which is not to be entered again.
        threading.Thread(target=logger.warning, args=("%s: %s", signal.Signals(number).name, effect)).start()

    signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


BEFORE_TRAINING = "nothing has been trained yet that could be saved; ending"


def leave_before_training() -> None:
    """What to do at a signal while nothing is trained that could be saved."""
    os._exit(Preempted.code)


def _answer(reader: int, stop: Callable[[], None], effect: str) -> None:
    first = None
    while number := os.read(reader, 1)[0]:
        # The pipe carries the numbers of other signals too, such as that of a child's end.
        if number not in SIGNALS:
            continue
        now = time.monotonic()
        if first is None:
            first = now
            if os.environ.get("LOCAL_RANK", "0") == "0":
                # A warning, for other nodes show no less.
                logger.warning("%s: %s", signal.Signals(number).name, effect)
            stop()
        elif now - first > SAME_SECONDS:
            os._exit(128 + number)
