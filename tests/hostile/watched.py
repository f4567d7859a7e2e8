"""What the children have in common: limits, a watch over what they do, and the loop over cases."""

import hashlib
import json
import os
import resource
import sys
import traceback
from collections.abc import Callable

import numpy as np

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


def serve(targets: dict[str, Callable], refusals: type[Exception] | tuple) -> None:
    """Answer the cases on standard input, each within so many seconds of processor time.

    An answer has a target's ``result``, or is ``refused`` with a message, or is the ``trace`` of what was not to be.
    """
    watch, cpu_seconds = Watch(sys.argv[1]), int(sys.argv[2])
    with open("/proc/self/status") as status:
        size = next(int(line.split()[1]) for line in status if line.startswith("VmSize")) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    for line in sys.stdin:
        case = json.loads(line)
        used = resource.getrusage(resource.RUSAGE_SELF)
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + cpu_seconds, hard))
        watch.noted.clear()
        watch.on = True
        try:
            answer = {"result": targets[case.pop("target")](**case)}
        except refusals as error:
            answer = {"refused": str(error)}
        except BaseException:
            answer = {"trace": traceback.format_exc()[-3000:]}
        watch.on = False
        print(json.dumps(answer | {"noted": watch.noted[:10]}), flush=True)


def digest(pixels: np.ndarray) -> str:
    """Of an image ``(H, W, C)`` uint8."""
    return hashlib.sha1(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()
