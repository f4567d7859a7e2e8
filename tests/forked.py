"""Processes of Python without the seconds in which each would import torch and DeepSpeed: forked where that is done.

In all else they are as new ones: arguments, variables, streams, signals, session, exit code, threads. But /proc has the
command and the variables of what they were forked from, a variable that is read at an import has no effect, and
nothing is done at the interpreter's end.
"""

import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import traceback
import types
from contextlib import suppress
from multiprocessing import reduction, resource_tracker
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "forked",
        "fdtrain.training.build",
        "fdtrain.training.board",
        "deepspeed.launcher.runner",
        "torch.distributed.launcher.api",
        "torch._dynamo",
    ]
)
"""What a server imports that begins with the first process, and does nothing else."""


class Forked(subprocess.Popen):
    """``subprocess.Popen`` of a script, ``python -c`` or ``python -m``, forked from the server."""

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest):
        streams = [_Stream(fd) for fd in _streams(rest)]
        self.process = SERVER.Process(target=_serve, args=(args, cwd, env or dict(os.environ), rest[14], streams))
        self.process.start()
        self.pid, self._child_created = self.process.pid, True
        self._close_pipe_fds(*rest[3:9])

    def _internal_poll(self, *_, **__):
        if self.returncode is None:
            self.returncode = self.process.exitcode
        return self.returncode

    def _wait(self, timeout):
        self.process.join(timeout)
        if self._internal_poll() is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode


def run(command: list, timeout: float = 240, **options) -> subprocess.CompletedProcess:
    """``subprocess.run`` that captures what a command says."""
    pipe = subprocess.PIPE
    with Forked(command, stdout=pipe, stderr=pipe, text=True, **options) as job:
        try:
            output = job.communicate(timeout=timeout)
        finally:
            job.kill()
    return subprocess.CompletedProcess(command, job.returncode, *output)


class _Child(subprocess.Popen):
    """What a forked process starts, as launchers do their ranks, is forked from itself if it is Python."""

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest):
        if isinstance(args, str) or args[0] != sys.executable:
            super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest)
            return
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            if preexec_fn is not None:
                preexec_fn()
            _become(args, cwd, env, rest[14], _streams(rest))
        self._child_created = True
        self._close_pipe_fds(*rest[3:9])


def _streams(rest: tuple) -> list[int]:
    """The child's three."""
    return [own if fd == -1 else fd for own, fd in enumerate((rest[3], rest[6], rest[8]))]


class _Stream:
    """A file descriptor that is passed with the arguments of a process."""

    def __init__(self, fd: int):
        self.fd = fd

    def __reduce__(self):
        return _received, (reduction.DupFd(self.fd),)


def _received(passed) -> int:
    return passed.detach()


def _serve(args, cwd, variables, session, streams) -> None:
    # What it starts, or has torchrun start, is waited for by itself alone.
    subprocess.Popen = subprocess_handler.Popen = _Child
    _become(args, cwd, variables, session, streams)


def _become(args, cwd, variables, session, streams) -> None:
    """Run a command in this process, which was just forked for it, and end."""
    code = 1
    try:
        gc.freeze()
        for number, fd in enumerate(streams):
            os.dup2(fd, number)
        os.closerange(3, 1024)
        resource_tracker._resource_tracker._fd = resource_tracker._resource_tracker._pid = None
        if session:
            os.setsid()
        if cwd is not None:
            os.chdir(cwd)
        if variables is not None:
            os.environ.clear()
            os.environ.update(variables)
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        # Else workers of its own would come from the server.
        multiprocessing.set_start_method("fork", force=True)
        # Python's own streams may have been replaced in what was forked.
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        sys.stdin = os.fdopen(0, closefd=False)
        run_words(args)
        code = 0
    except SystemExit as end:
        code = end.code & 0xFF if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        traceback.print_exc()
        code = -signal.SIGINT
    except BaseException:
        traceback.print_exc()
    threading._shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    if code < 0:  # By the signal, as Python ends.
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def run_words(command: list) -> None:
    """A command of Python in this process."""
    words = [word for word in map(str, command) if word not in (sys.executable, "-u")]
    first, *others = words
    if first == "-c":
        sys.argv = ["-c", *others[1:]]
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(others[0], "<string>", "exec"), vars(main))
    elif first == "-m":
        sys.argv = others
        runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(first).resolve().parent))
        runpy.run_path(first, run_name="__main__")
