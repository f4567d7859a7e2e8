"""What one rank tells, every rank learns after the same step."""

import json
import sys

from jobs import Group

from fdtrain.resilience.consensus import Consensus

PROGRAM = """
import json, signal, os, sys, threading
import torch
from fdtrain import distributed
from fdtrain.resilience.consensus import Consensus

distributed.connect(20)
consensus = Consensus(("stop", "bad", "saved"), patience=20)
signal.signal(signal.SIGUSR1, lambda *_: consensus.raise_flag("bad"))
heard = []
for step in range(6):
    if step == 1 and distributed.rank() == 1:
        consensus.raise_flag("stop")
        os.kill(os.getpid(), signal.SIGUSR1)
    if step == 2:
        consensus.raise_flag("stop")
    if step == 3 and distributed.rank() == 0:
        thread = threading.Thread(target=consensus.raise_flag, args=("saved",))
        thread.start()
        thread.join()
    heard.append(sorted(consensus.exchange()))
# As a run ends: a thread of the group that is still busy would bring the interpreter down with it.
torch.distributed.barrier()
torch.distributed.destroy_process_group()
print(json.dumps(heard))
"""


def test_two_processes_hear_the_same_after_the_same_step():
    """From the main program, a signal's handler and a thread."""
    with Group(2, [sys.executable, "-c", PROGRAM]) as jobs:
        heard = [json.loads(job.communicate(timeout=180)[0]) for job in jobs]
    assert heard[0] == heard[1] == [[], [], ["bad", "stop"], ["stop"], ["saved"], []]


def test_one_process_hears_itself_at_once_and_needs_no_group():
    consensus = Consensus(("stop",))
    consensus.raise_flag("stop")
    consensus.raise_flag("stop")
    assert [consensus.exchange() for _ in range(3)] == [{"stop"}, set(), set()]
