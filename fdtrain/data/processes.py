"""Work spread over processes that end with their parent, and a bar that shows how far it is."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from typing import TypeVar

from tqdm import tqdm

from fdtrain.errors import UserError

T = TypeVar("T")

REQUESTS = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}
"""Signals that ask a run to end (resilience/signals.py)."""
PR_SET_PDEATHSIG = 1
"""Of linux/prctl.h."""

_stop: Event | None = None


def run(function: Callable[..., T], tasks: Iterable[tuple], workers: int) -> Iterator[T]:
    """``function(*task)`` of every task, as they finish, by up to ``workers`` processes (1: in this one).

    Leaving early, by an error or an interrupt, waits for the tasks at work, which :func:`stopped` tells to end.

    Raises:
        UserError: a process was killed.
    """
    tasks = list(tasks)
    workers = min(workers, len(tasks))
    if workers <= 1:
        for task in tasks:
            yield function(*task)
        return
    # Not fork: it would copy this process's threads' locks in whatever state they are.
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(workers, context, _begin, (stop,))
    try:
        for future in as_completed([pool.submit(function, *task) for task in tasks]):
            yield future.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, perhaps for memory. With fewer --workers, the same command goes on."
        ) from None
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def stopped() -> bool:
    """Whether the parent wants no more of this process."""
    return _stop is not None and _stop.is_set()


def _begin(stop: Event) -> None:
    global _stop
    _stop = stop
    # An interrupt reaches the whole terminal group; the parent alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


@contextmanager
def unheard() -> Iterator[None]:
    """Around the start of reading processes: they and all their threads begin with :data:`REQUESTS` blocked.

    A mask that a process sets itself spares only the threads that it starts later. The thread that is here blocks
    them as well meanwhile; any other still hears.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def heed_parent_alone(worker: int) -> None:
    """In a reading process of a run: leave every signal that asks the run to end to the parent, which still reads.

    Launchers signal whole trees of processes, terminals whole groups. A SIGTERM from the parent itself counts, and
    so does the parent's death. The process must have been started within :func:`unheard`.
    """
    end_with_parent()
    for number in REQUESTS - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_await_parent_s_signal, daemon=True).start()


def end_with_parent() -> None:
    """Let the system kill this process when its parent is gone, in whatever call it is (Linux).

    For the system the parent is the thread that started it, which must be one that stays, such as the main one.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may have gone before.
    parent = multiprocessing.parent_process()
    if parent is None or not parent.is_alive():
        os._exit(1)


def _await_parent_s_signal() -> None:
    parent = multiprocessing.parent_process()
    while parent is not None and signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        continue
    os._exit(0)


@contextmanager
def progress(total: int, done: Callable[[], int], what: str, show: bool) -> Iterator[None]:
    """A bar that asks ``done`` how far the work is, twice a second."""
    if not show:
        yield
        return
    end = threading.Event()
    with tqdm(total=total, initial=done(), desc=what, unit=" images", unit_scale=True) as bar:

        def follow() -> None:
            while not end.wait(0.5):
                bar.update(done() - bar.n)

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        try:
            yield
        finally:
            end.set()
            follower.join()
            bar.update(done() - bar.n)
