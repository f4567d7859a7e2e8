"""Ranks that are killed, stopped or stuck: every other one ends in time, and says which it was."""

import signal
import sys

import pytest
from jobs import Group, message

# Three ranks that sum a number over and over. The one of argv[2] does to itself what argv[1] says,
# at the moment of argv[3]: before it has joined the process group, right after, in the middle of the work, or there
# with the main program of the others in a stand-in for a GPU's stream. What fails in a stream, as a call between ranks
# does there, is seen by a watchdog alone; the stream never comes to an end, and neither does who waits for it.
PROGRAM = """
import os, platform, queue, signal, sys, threading, time
import torch
import torch.distributed as dist
from fdtrain import distributed
from fdtrain.errors import UserError, exit_code
from fdtrain.resilience.heartbeat import Limits, process_group

what, who, when = sys.argv[1], int(sys.argv[2]), sys.argv[3]
if what != "wrong":
    platform.node = lambda host=f"node{os.environ['RANK']}": host
# As where only some hosts of a torchrun have seen their ranks fail.
os.environ["TORCHELASTIC_RESTART_COUNT"] = os.environ["RANK"]
join = dist.init_process_group

def fall(moment):
    if (moment, distributed.rank()) != (when, who):
        return
    if what == "wrong":
        raise UserError("the sample is broken")
    if what == "broken":
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
    if what == "stuck":
        time.sleep(60)
    if what in ("SIGKILL", "SIGSTOP"):
        os.kill(os.getpid(), getattr(signal, what))

def init_process_group(*arguments, **options):
    print(os.getpid(), flush=True)
    if when == "joining":
        # All have begun, and left a sign.
        time.sleep(2)
    fall("joining")
    join(*arguments, **options)
    fall("joined")
    if when == "joined" and distributed.rank() != who:
        # As in the import of a large package: no call of the group's would fail.
        time.sleep(60)

failed = threading.Event()

def stream(launched, ended):
    for _ in iter(launched.get, None):
        try:
            distributed.all_reduce_sum(torch.ones(1))
        except RuntimeError:
            failed.set()
        # Not a daemon: as a process group of NCCL, it would outlive the interpreter.
        while failed.is_set():
            time.sleep(1)
        ended.put(None)

def main():
    dist.init_process_group = init_process_group
    distributed.failed_on_device = failed.is_set
    launched, ended = queue.Queue(), queue.Queue()
    if when == "stream":
        threading.Thread(target=stream, args=(launched, ended)).start()
    patience = 4 if what == "stuck" else 60
    with process_group(Limits(3, patience, patience)) as (_, heartbeat):
        for step in range(400):
            # Busy machines have read its name by then too.
            if step == 150:
                fall("working")
                fall("stream")
            heartbeat.tick()
            if when == "stream":
                launched.put(step)
                ended.get()
            else:
                distributed.all_reduce_sum(torch.ones(1))
            time.sleep(0.01)
    launched.put(None)

sys.exit(exit_code(main))
"""


@pytest.mark.parametrize(
    ("what", "who", "when"),
    [
        ("SIGKILL", 0, "working"),
        ("SIGSTOP", 0, "working"),
        ("SIGKILL", 0, "joining"),
        ("SIGSTOP", 1, "joined"),
        ("SIGKILL", 0, "stream"),
        ("SIGKILL", 1, "stream"),
        ("SIGSTOP", 1, "stream"),
        ("stuck", 1, "stream"),
    ],
)
def test_the_others_end_and_name_it(what, who, when):
    with Group(3, [sys.executable, "-c", PROGRAM, what, str(who), when]) as jobs:
        for job in jobs:
            assert int(job.stdout.readline()) == job.pid
        for rank in {0, 1, 2} - {who}:
            # Far less than a call between them would wait.
            said = message(jobs[rank], 40)
            expected = "held up the others for longer" if what == "stuck" else "Killed, stopped or cut off"
            # Rank 0 may be gone before it has told its name.
            named = f"rank {who} (process {jobs[who].pid} on node{who})"
            assert (named if when in ("working", "stream") else f"rank {who}") in said
            assert expected in said
            assert "Launch again with --resume auto." in said
        if what == "SIGSTOP":
            assert jobs[who].poll() is None
            jobs[who].send_signal(signal.SIGCONT)
            # Given up by all, it ends as well when it wakes.
            assert jobs[who].wait(120) == 1


def test_an_error_of_a_rank_s_own_is_left_to_it_to_tell():
    with Group(3, [sys.executable, "-c", PROGRAM, "wrong", "1", "working"]) as jobs:
        assert jobs[1].wait(120) == 2
        assert "error (rank 1): the sample is broken" in jobs[1].stderr.read()
        for rank in (0, 2):
            _, said = jobs[rank].communicate(timeout=120)
            # Nothing of their own: they share its console.
            assert (jobs[rank].returncode, [line for line in said.splitlines() if "fdtrain: error" in line]) == (1, [])


def test_a_rank_whose_gpu_fails_ends_without_waiting_for_it():
    """The others wait in their streams, which nothing tells that there is nothing to wait for."""
    with Group(3, [sys.executable, "-c", PROGRAM, "broken", "1", "stream"]) as jobs:
        assert jobs[1].wait(60) == 1
        assert "CUDA error: uncorrectable ECC error encountered" in jobs[1].stderr.read()
        for rank in (0, 2):
            assert f"rank 1 (process {jobs[1].pid} on node1) ended with an error" in message(jobs[rank], 40)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_whose_peer_never_comes(rank):
    program = (
        "import sys\n"
        "from fdtrain import errors\n"
        "from fdtrain.resilience.heartbeat import Limits, process_group\n"
        "sys.exit(errors.exit_code(process_group(Limits(60, 600_000, joining=1)).__enter__))"
    )
    with Group(2, [sys.executable, "-c", program], [rank]) as (job,):
        said = message(job, 120)
        assert "processes of this run have not all come together" in said
        assert "within 1 s" in said
        assert ("rank 1 never came" in said) == (rank == 0)
