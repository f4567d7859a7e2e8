"""A run that is started over ssh on each of two hosts: closing the connections saves and ends it."""

import shutil
import subprocess
from pathlib import Path
from shlex import quote

import pytest
from conftest import ROOT, environment, free_port
from jobs import until

pytestmark = pytest.mark.cluster
STEPS = 200
CONFIGURATION = """
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
StrictModes no
PasswordAuthentication no
PermitRootLogin yes
"""


@pytest.fixture(scope="module")
def ssh(hosts, tmp_path_factory):
    """A command's beginning, by host: with a terminal, as one that is typed has."""
    if not (sshd := shutil.which("sshd")):
        pytest.skip("no sshd: apt-get install openssh-server openssh-client")
    folder = tmp_path_factory.mktemp("ssh")
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    (folder / "sshd").write_text(CONFIGURATION.format(folder=folder))
    # Its own folder, of which the package's service takes care.
    Path("/run/sshd").mkdir(exist_ok=True)
    servers = [hosts.start(host, [sshd, "-D", "-f", str(folder / "sshd")]) for host in range(2)]
    options = ["-tt", "-i", str(folder / "user"), "-oStrictHostKeyChecking=no", f"-oUserKnownHostsFile={folder}/known"]
    begins = [hosts.command(0, ["ssh", *options, f"root@{name}"]) for name in hosts.names]
    for begin in begins:
        until(lambda begin=begin: subprocess.run([*begin, "true"], capture_output=True).returncode == 0, 60)
    yield begins
    for server in servers:
        server.kill()
        server.communicate()


@pytest.fixture
def start(launch, ssh, hosts, tmp_path):
    hostfile = tmp_path / "hosts"
    hostfile.write_text("".join(f"{name} slots=1\n" for name in hosts.names))
    variables = {key: environment()[key] for key in ("PATH", "PYTHONPATH", "OMP_NUM_THREADS", "DS_ACCELERATOR")}
    script = launch.command(f"training.steps={STEPS}", processes=0, resume=True)[1:]

    def launched() -> list[subprocess.Popen]:
        port, jobs = str(free_port()), []
        for node, begin in enumerate(ssh):
            deepspeed = ["deepspeed", "--hostfile", str(hostfile), "--no_ssh", "--node_rank", str(node)]
            command = [*deepspeed, "--master_addr", hosts.names[0], "--master_port", port, *script]
            words = ["env", *(f"{key}={value}" for key, value in variables.items()), *command]
            typed = f"cd {quote(str(ROOT))} && exec {' '.join(map(quote, words))}"
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
            jobs.append(subprocess.Popen([*begin, typed], text=True, **pipes))
        return jobs

    return launched


def steps_done(launch, jobs: list[subprocess.Popen]) -> int:
    assert all(job.poll() is None for job in jobs), [job.communicate()[0] for job in jobs if job.poll() is not None]
    return max(launch.losses(), default=0) if (launch.run_folder() / "metrics.jsonl").exists() else 0


def test_closed_connections_save_and_end_the_run(launch, start):
    jobs = start()
    until(lambda: steps_done(launch, jobs) >= 3, 300)
    for job in jobs:
        job.kill()
        job.communicate()
    lock = launch.run_folder() / "lock"
    until(lambda: not lock.exists(), 120)
    (saved,) = (launch.run_folder() / "checkpoints").glob("step_*")
    assert 3 <= int(saved.name.removeprefix("step_")) < STEPS
    jobs = start()
    said = [job.communicate(timeout=300)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], said
    assert f"resuming after step {int(saved.name.removeprefix('step_'))} of {STEPS}" in said[0]
    assert list(launch.losses()) == list(range(1, STEPS + 1))
