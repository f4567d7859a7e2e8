"""Two hosts with a network between them: a run over both that is cut in two in mid-step.

The hosts are network namespaces of this machine (hosts.py).
"""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from checkpoints import assert_same
from conftest import environment, free_port

SETTINGS = (
    "training.steps=60",
    "checkpoint.every=5",
    "training.heartbeat_timeout_s=3",
    "training.collective_timeout_s=60",
)


def script(launch) -> list[str]:
    """The training command without the python in front."""
    return launch.command(*SETTINGS, processes=0, resume=True)[1:]


def wait_for(path: Path, jobs: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + 180
    while not path.exists():
        assert all(job.poll() is None for job in jobs), [job.stderr.read() for job in jobs if job.poll() is not None]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ended_like(launch, undisturbed) -> None:
    assert launch.losses() == undisturbed.losses()
    assert_same(launch.checkpoint(60), undisturbed.checkpoint(60))


def test_deepspeed_on_two_hosts_that_are_cut_apart(launch, undisturbed, hosts, tmp_path):
    """Both ranks end, each naming the other; the run goes on from what they saved."""
    hostfile = tmp_path / "hosts"
    hostfile.write_text("".join(f"{address} slots=1\n" for address in hosts.addresses))
    shared = [shutil.which("deepspeed", path=environment()["PATH"]), "--hostfile", str(hostfile), "--no_ssh"]
    shared += ["--master_addr", hosts.addresses[0], "--master_port", str(free_port())]
    jobs = [hosts.fork(node, [*shared, "--node_rank", str(node), *script(launch)]) for node in range(2)]
    wait_for(launch.run_folder() / "checkpoints" / "step_00000010", jobs)
    hosts.cut()
    said = [job.communicate(timeout=300)[1] for job in jobs]
    hosts.mend()
    assert [job.returncode for job in jobs] == [1, 1]
    for mine, other in ((0, 1), (1, 0)):
        who = r"fdtrain: error \(rank 1\)" if mine else "fdtrain: error"
        assert re.search(rf"{who}: lost rank {other} \(process \d+ on ", said[mine]), said[mine]
    assert not (launch.run_folder() / "checkpoints" / "step_00000060").exists()
    launch(*SETTINGS, processes=2, resume=True)
    ended_like(launch, undisturbed)


def test_torchrun_brings_a_job_back_by_itself(launch, undisturbed, hosts):
    endpoint = f"{hosts.addresses[0]}:{free_port()}"
    shared = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    shared += ["--max-restarts", "5", "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", "test"]
    attempts = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    jobs = [hosts.fork(node, [*shared, *script(launch)], **attempts) for node in range(2)]
    wait_for(launch.run_folder() / "checkpoints" / "step_00000010", jobs)
    hosts.cut()
    time.sleep(8)
    hosts.mend()
    said = [job.communicate(timeout=300)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], said
    for text in said:
        assert re.search(r"fdtrain: error.*: lost rank [01] \(process \d+ on ", text), text
    assert any("resuming after step" in text for text in said)
    ended_like(launch, undisturbed)
