"""Processes that take cases one after another, under limits, with a watchdog; one that a case has ended starts anew."""

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path

from conftest import ROOT, environment

WALL_SECONDS = 120
"""For one case: a child has its own limit of processor time; this is for one that waits."""


class Ended(Exception):
    """A case has ended its child: by a limit, or by waiting for ever."""


class Child:
    """``script`` in a process that reads a case a line and answers with a line, both JSON."""

    def __init__(self, script: str, folder: Path, cpu_seconds: int):
        self.cpu_seconds = cpu_seconds
        self.script, self.errors = Path(__file__).with_name(script), folder / f"{script}.stderr"
        self.folder, self.process = folder, None

    def __call__(self, **case):
        if self.process is None:
            self._start()
        self.process.stdin.write(json.dumps(case).encode() + b"\n")
        self.process.stdin.flush()
        line = self._answer()
        if not line:
            self.process.kill()
            code = self.process.wait()
            self.process = None
            raise Ended(f"exit code {code} on {case}: {self.errors.read_text(errors='replace')[-2000:]}")
        return json.loads(line)

    def close(self) -> None:
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait(60)

    def _start(self) -> None:
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(self.script), str(self.folder), str(self.cpu_seconds)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=ROOT,
                env=environment()
                | {"PYTHONPATH": paths, "TMPDIR": str(self.folder), "ARROW_DEFAULT_MEMORY_POOL": "system"},
            )

    def _answer(self) -> bytes:
        """A line; empty: none came."""
        line, end = b"", time.monotonic() + WALL_SECONDS
        output = self.process.stdout.fileno()
        while not line.endswith(b"\n"):
            if not select.select([output], [], [], max(0.0, end - time.monotonic()))[0]:
                return b""
            piece = os.read(output, 1 << 16)
            if not piece:
                return b""
            line += piece
        return line
