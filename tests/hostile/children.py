"""Processes that take cases one after another, under limits and watched; one that a case has ended starts anew."""

import hashlib
import importlib
import multiprocessing
import os
import resource
import sys
import tempfile
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

SPAWN = multiprocessing.get_context("spawn")
WALL_SECONDS = 120
"""For one case: a child has its own limit of processor time; this is for one that waits."""
MEMORY = 1 << 30
"""Bytes that the cases may add to what the imports have taken."""

RUNS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "subprocess.Popen", "pickle.find_class")
CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.chmod", "os.chown", "os.link", "os.symlink", "os.truncate")
_LIBRARIES = tuple(
    os.path.realpath(p) + os.sep for p in (sys.prefix, sys.base_prefix, "/usr/lib", "/usr/share", "/etc/ssl")
)
_HARMLESS = ("/dev/null", "/dev/urandom", "/etc/hosts", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/host.conf")


class Watch:
    """Notes what a case does beyond reading its own folder."""

    def __init__(self, folder: str):
        self.folder, self.noted, self.on = os.path.realpath(folder) + os.sep, [], False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple) -> None:
        if not self.on:
            return
        if event in RUNS or (event == "socket.connect" and arguments[1][0] not in ("127.0.0.1", "::1")):
            self.noted.append(f"{event}{arguments!r}"[:300])
        elif event in CHANGES or event == "open":
            path, *rest = arguments
            if event != "open" and rest and isinstance(rest[-1], int) and rest[-1] >= 0:
                path = os.path.join(f"/proc/self/fd/{rest[-1]}", os.fsdecode(path))
            if isinstance(path, str | bytes | os.PathLike) and not self._allowed(os.fsdecode(path), event, rest):
                self.noted.append(f"{event}{arguments!r}"[:300])

    def _allowed(self, path: str, event: str, rest: list) -> bool:
        folder, name = os.path.split(os.path.abspath(path))
        path = os.path.join(os.path.realpath(folder), name) + os.sep
        if path.startswith(self.folder):
            return event != "open" or os.path.realpath(path).startswith(self.folder[:-1])
        writes = event != "open" or bool((rest[1] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        here = (os.getcwd() + os.sep, *_LIBRARIES)
        return not writes and (os.path.realpath(path) + os.sep).startswith((*here, *_HARMLESS))


class Ended(Exception):
    """A case has ended its child: by a limit, or by waiting for ever."""


class Child:
    """A process that answers with what the functions ``TARGETS`` of a module return."""

    def __init__(self, module: str, folder: Path, cpu_seconds: int):
        self.arguments, self.process = (module, str(folder), cpu_seconds), None

    def __call__(self, **case):
        if self.process is None:
            self.connection, other = SPAWN.Pipe()
            self.process = SPAWN.Process(target=_serve, args=(other, *self.arguments), daemon=True)
            self.process.start()
            other.close()
        with suppress(EOFError):
            self.connection.send(case)
            if self.connection.poll(WALL_SECONDS):
                return self.connection.recv()
        raise Ended(f"exit code {self.close()} on {case}")

    def close(self) -> int | None:
        """Its exit code."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.join()
            return process.exitcode


def _serve(connection: Connection, module: str, folder: str, cpu_seconds: int) -> None:
    """Answer the cases, each within so many seconds of processor time.

    An answer has a target's ``result``, or is ``refused`` with a message, or is the ``trace`` of what was not to be.
    """
    os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    tempfile.tempdir = os.environ["TMPDIR"] = folder
    own = importlib.import_module(module)
    targets = {target.__name__: target for target in own.TARGETS}
    watch = Watch(folder)
    with open("/proc/self/status") as status:
        size = next(int(line.split()[1]) for line in status if line.startswith("VmSize")) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    while True:
        case = connection.recv()
        used = resource.getrusage(resource.RUSAGE_SELF)
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + cpu_seconds, hard))
        watch.noted.clear()
        watch.on = True
        try:
            answer = {"result": targets[case.pop("target")](**case)}
        except own.REFUSALS as error:
            answer = {"refused": str(error)}
        except BaseException:
            answer = {"trace": traceback.format_exc()[-3000:]}
        watch.on = False
        connection.send(answer | {"noted": watch.noted[:10]})


def digest(pixels: np.ndarray) -> str:
    """Of an image ``(H, W, C)`` uint8."""
    return hashlib.sha1(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()
