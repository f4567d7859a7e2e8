"""When a launcher is killed, nothing that it has started stays behind; what was started by hand does."""

import os
import signal
import subprocess
import sys

import psutil
import pytest
from jobs import ranks_of, start, torchrun, wait_for_step

# What starts the child leaves it behind when it is killed.
PARENT = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', sys.argv[1]]))"
CHILD = """
import os, time
from fdtrain.resilience import launcher
with launcher.watched(time.sleep), launcher.watched(launcher.end):
    print(os.getpid(), flush=True)
    time.sleep(120)
"""


@pytest.mark.parametrize(
    ("variables", "ends"),
    [
        ({"TORCHELASTIC_RUN_ID": "none", "RANK": "0"}, True),
        ({"CROSS_RANK": "0", "RANK": "0"}, True),
        ({"RANK": "0"}, False),
    ],
    ids=["torchrun", "DeepSpeed", "by hand"],
)
def test_a_process_ends_with_its_launcher_alone(variables, ends):
    job = start([sys.executable, "-c", PARENT, CHILD], subprocess.Popen, **variables)
    child = psutil.Process(int(job.stdout.readline()))
    job.kill()
    job.wait()
    try:
        if ends:
            assert child.wait(60) is None
        else:
            with pytest.raises(psutil.TimeoutExpired):
                child.wait(4)
    finally:
        if child.is_running():
            child.kill()


@pytest.mark.parametrize(("program", "number"), [("torchrun", signal.SIGKILL), ("deepspeed", signal.SIGTERM)])
def test_a_run_saves_and_ends_when_its_launcher_is_gone(launch, program, number):
    """Its reading processes too. The signal is to the launcher's first process alone."""
    settings = ("training.steps=100000", "data.workers=1")
    if program == "torchrun":
        job = start(torchrun(launch.command(*settings, processes=0), "--nproc-per-node=2"))
    else:
        # DeepSpeed's launchers are known by their commands, which forked processes do not have.
        job = start(launch.command(*settings, processes=2), subprocess.Popen)
    wait_for_step(launch, 2, job)
    ranks = ranks_of(job, program)
    started = psutil.Process(job.pid).children(recursive=True)
    assert len(started) >= 4
    os.kill(job.pid, number)
    job.wait(60)
    try:
        for process in psutil.wait_procs(started, timeout=120)[1]:
            pytest.fail(f"{process.pid} is still there: {process.cmdline()}")
    finally:
        for process in started:
            if process.is_running():
                process.kill()
    said = job.communicate()[1]
    assert len(ranks) == 2
    # DeepSpeed's may pass the signal on before it ends.
    passed_on = program == "deepspeed" and "SIGTERM" in said
    assert passed_on or "fdtrain: the launcher has ended, and so do its processes." in said
    assert "stopped as asked after step" in said, said
    assert "Traceback" not in said
    assert len(list((launch.run_folder() / "checkpoints").glob("step_*"))) == 1
