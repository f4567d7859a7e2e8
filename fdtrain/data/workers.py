"""Worker processes that end with their parent: a pool for tasks, and the signals of readers."""

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

from fdtrain.errors import UserError

T = TypeVar("T")

REQUESTS = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP}
"""Signals that ask a run to end (resilience/signals.py)."""
PR_SET_PDEATHSIG = 1
"""Of linux/prctl.h."""

_stop: Event | None = None


def run(function: Callable[..., T], tasks: Iterable[tuple], workers: int) -> Iterator[T]:
    """``function(*task)`` of every task, as they finish, by up to ``workers`` processes (1: in this one).

    An error or an interrupt ends the iteration early: it waits for the running tasks, which see :func:`stopped`. Raises
    UserError: a process was killed."""
    tasks = list(tasks)
    workers = min(workers, len(tasks))
    if workers <= 1:
        for task in tasks:
            yield function(*task)
        return
    # fork would copy the locks of this process's threads in whatever state they are.
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(workers, context, _init_worker, (stop,))
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
    """Whether the parent has asked this process to stop."""
    return _stop is not None and _stop.is_set()


def _init_worker(stop: Event) -> None:
    global _stop
    _stop = stop
    # An interrupt reaches the whole terminal group; the parent alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Start reading processes within this context: they and all their threads begin with :data:`REQUESTS` blocked.

    A mask that a process sets for itself covers only the threads that it starts later. Meanwhile the calling thread
    blocks the signals too; the other threads of this process still receive them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_all_but_parent(worker: int) -> None:
    """In a reading process: ignore every signal that asks the run to end, unless it comes from the parent.

    Launchers signal whole trees of processes, and terminals whole groups, while the parent still reads. A SIGTERM
    from the parent itself ends this process, and so does the parent's death. The process must have been started
    within :func:`signals_blocked`.
    """
    end_with_parent()
    for number in REQUESTS - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def end_with_parent() -> None:
    """Let the system kill this process when its parent ends, even within a blocking call (Linux).

    The system takes the thread that started this process for its parent. That thread must live on, as the main one.
    """
    signalled_at_parents_end(signal.SIGKILL)
    # It may have ended before.
    parent = multiprocessing.parent_process()
    if parent is None or not parent.is_alive():
        os._exit(1)


def signalled_at_parents_end(number: signal.Signals) -> None:
    """Let the system send this process a signal when the thread that started it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    while parent is not None and signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        continue
    os._exit(0)
