"""What one rank tells, every rank learns after the same step; what grows with their number: connections do not."""

import json
import sys

from conftest import fork
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


MANY = """
import os
import torch
from fdtrain import distributed
from fdtrain.resilience.consensus import Consensus

distributed.connect(60)
consensus = Consensus(("stop",), 60)
for _ in range(3):
    consensus.exchange()
consensus._work.wait()
open_files = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
print(sum("socket:" in file for file in open_files), distributed.rank())
# Until all have counted.
distributed.all_reduce_sum(torch.zeros(1))
"""


def test_a_rank_is_connected_with_those_to_whom_it_speaks(tmp_path):
    """A mesh of twelve would be eleven sockets a rank, in each of two groups."""
    (tmp_path / "program.py").write_text(MANY)
    result = fork([str(tmp_path / "program.py")], tmp_path, processes=12)
    assert result.returncode == 0, result.stderr
    sockets = [int(line.split()[0]) for line in result.stdout.splitlines()]
    assert len(sockets) == 12
    # Rank 0 runs the store.
    assert max(sockets[1:]) <= 8, sockets
