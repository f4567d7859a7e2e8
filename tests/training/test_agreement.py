"""What one rank tells, every rank learns after the same step."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT, environment, free_port

from fdtrain.training.agreement import Agreement

PROGRAM = """
import json, signal, os, sys, threading
from fdtrain import ranks
from fdtrain.training.agreement import Agreement

ranks.connect(20)
agreement = Agreement(("stop", "bad", "saved"), patience=20)
signal.signal(signal.SIGUSR1, lambda *_: agreement.tell("bad"))
heard = []
for step in range(6):
    if step == 1 and ranks.rank() == 1:
        agreement.tell("stop")
        os.kill(os.getpid(), signal.SIGUSR1)
    if step == 2:
        agreement.tell("stop")
    if step == 3 and ranks.rank() == 0:
        thread = threading.Thread(target=agreement.tell, args=("saved",))
        thread.start()
        thread.join()
    heard.append(sorted(agreement.exchange()))
print(json.dumps(heard))
"""


def test_two_processes_hear_the_same_after_the_same_step():
    """From the main program, a signal's handler and a thread."""
    where = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            cwd=ROOT,
            env={**environment(), **where, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    heard = [json.loads(job.communicate(timeout=180)[0]) for job in jobs]
    assert heard[0] == heard[1] == [[], [], ["bad", "stop"], ["stop"], ["saved"], []]


def test_one_process_hears_itself_as_late_and_needs_no_group():
    agreement = Agreement(("stop",))
    agreement.tell("stop")
    agreement.tell("stop")
    assert [agreement.exchange() for _ in range(3)] == [set(), {"stop"}, set()]


def test_an_unknown_flag():
    with pytest.raises(ValueError, match="no flag 'halt'; there are stop, bad"):
        Agreement(("stop", "bad")).tell("halt")
