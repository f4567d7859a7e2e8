"""The tools on two processes, of which one is killed or stopped: the other ends, and names it."""

import os
import signal
import sys

import pytest
from jobs import Group, message

# A tool with a shorter heartbeat, that says when it has joined the others.
PROGRAM = """
import os, runpy, sys
from contextlib import contextmanager
from fdtrain.resilience import heartbeat

inner = heartbeat.process_group

@contextmanager
def joined(limits, again):
    with inner(limits._replace(heartbeat=6), again) as group:
        print("joined", flush=True)
        yield group

heartbeat.process_group = joined
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(("tool", "number", "who"), [("sample", signal.SIGKILL, 0), ("evaluate", signal.SIGSTOP, 1)])
def test_the_other_process_of_a_tool_ends(launch, digits, tmp_path, tool, number, who):
    launch("training.steps=1", processes=0)
    arguments = {
        "sample": ["tools/sample.py", launch.run_folder(), "--out", tmp_path / "s.npz", "--images", 100000],
        "evaluate": ["tools/evaluate.py", "nll", launch.run_folder(), "--data", digits, "--draws", 5000],
    }[tool]
    with Group(2, [sys.executable, "-c", PROGRAM, *map(str, arguments)]) as jobs:
        for job in jobs:
            assert job.stdout.readline() == "joined\n"
        os.kill(jobs[who].pid, number)
        said = message(jobs[1 - who], 60)
        assert f"lost rank {who}" in said
        assert said.endswith("The same command goes on where it was.")
