"""The launcher of this rank: when it is gone, so is whoever would end the rank, and the rank ends by itself.

Only torchrun and DeepSpeed are followed. Whatever else has started a process may end before it, as the shell does
under nohup, setsid or tmux; SLURM and Kubernetes end what they have started in any case.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fdtrain.lock import process_fields

logger = logging.getLogger(__name__)

LAUNCHED = {"TORCHELASTIC_RUN_ID", "CROSS_RANK"}
"""Variables that torchrun and DeepSpeed's launcher give to what they start."""
NOBODY = 0
"""The parent of no process."""
INTERVAL = 1.0
"""Seconds between two looks."""

_answers: list[Callable[[], None]] = []
_followed: list[int] = []
_following = threading.Lock()
_told = threading.Lock()


@contextmanager
def watched(answer: Callable[[], None]) -> Iterator[None]:
    """Call ``answer`` (from a thread, once) when the launcher has ended; the innermost context's counts.

    Looking for the parent now and then, instead of asking the kernel for a signal at its death: that would come when
    the launcher's *thread* ends that started this rank, and would count as a second signal to end where the launcher
    dies of a first one that this rank is answering already.
    """
    _answers.append(answer)
    if _following.acquire(blocking=False) and (ancestors := _ancestors()):
        _followed[:] = ancestors
        threading.Thread(target=_follow, daemon=True).start()
    try:
        yield
    except BaseException:
        # This process is ending: what held before, while there was nothing to save, must not end it in its last line.
        _answers.clear()
        # Another rank may have seen it first, and asked all to end.
        if _followed and _gone():
            _tell()
        raise
    finally:
        with suppress(ValueError):
            _answers.remove(answer)


def end() -> None:
    """What to do where there is nothing to save."""
    os._exit(1)


def _follow() -> None:
    while not _gone():
        time.sleep(INTERVAL)
    _tell()
    if _answers:
        _answers[-1]()


def _gone() -> bool:
    parent, *above = _followed
    return os.getppid() != parent or not all(map(_alive, above))


def _tell() -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0" and _told.acquire(blocking=False):
        # A warning, for other nodes show no less. Logging bears a console that has gone with the launcher.
        logger.warning("the launcher has ended, and so do its processes.")


def _ancestors() -> list[int]:
    """The processes to follow, the parent first; none of a process that no launcher has started."""
    if not os.environ.keys() & LAUNCHED:
        return []
    parent = os.getppid()
    command = _command(parent)
    if (parent == 1 or Path(command[0]).name == "systemd") and not any("python" in word for word in command):
        # The launcher has ended already. It may itself be process 1, in a container.
        return [NOBODY]
    above = _parent(parent)
    if "deepspeed.launcher.launch" in command and any(
        Path(word).name.startswith("deepspeed") for word in _command(above)[:4]
    ):
        # ``deepspeed`` itself, which on other hosts ssh stands in for.
        return [parent, above]
    return [parent]


def _alive(process: int) -> bool:
    # A zombie has ended, though nobody has asked for its code yet.
    return process_fields(process)[:1] not in ([], ["Z"], ["X"])


def _parent(process: int) -> int:
    return int((process_fields(process)[1:] or [NOBODY])[0])


def _command(process: int) -> list[str]:
    try:
        return Path(f"/proc/{process}/cmdline").read_text().split("\0")
    except OSError:
        return [""]
