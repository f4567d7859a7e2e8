"""SLURM of two nodes on this machine: munged, slurmctld and one slurmd a host, with all their files in one folder."""

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, environment
from hosts import Hosts
from jobs import until

# Every node is said to have what the batch script asks for. A job of `urgent` pre-empts those of `usual`. A requeued
# job waits until credentials of its last run have expired.
CONFIGURATION = """
ClusterName=fdtrain
SlurmctldHost={hosts[0]}
SlurmUser=root
MailProg=/bin/true
MpiDefault=none
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SchedulerParameters=batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=20
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName={hosts[0]},{hosts[1]} CPUs=64 RealMemory=100000 Gres=gpu:8
PartitionName=usual Nodes=ALL Default=YES PriorityTier=1 GraceTime=300
PartitionName=urgent Nodes=ALL PriorityTier=2 PreemptMode=OFF
"""
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")


class Slurm:
    """What users and administrators of the cluster ask of it, on its first node."""

    def __init__(self, hosts: Hosts, folder: Path):
        self.hosts, self.folder, self._daemons = hosts, folder, []

    def __enter__(self) -> "Slurm":
        if absent := [program for program in PROGRAMS if not shutil.which(program)]:
            pytest.skip(f"no {', '.join(absent)}: apt-get install slurmctld slurmd slurm-client munge")
        munge = self.folder / "munge"
        munge.mkdir(mode=0o700)
        (self.folder / "state").mkdir()
        (munge / "key").write_bytes(os.urandom(64))
        (munge / "key").chmod(0o400)
        (self.folder / "slurm.conf").write_text(CONFIGURATION.format(hosts=self.hosts.names, folder=self.folder))
        for gpu in range(8):
            os.mknod(self.folder / f"gpu{gpu}", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpu[0-7]\n")
        files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
        options = [f"--{option}={munge}/{file}" for option, file in files.items()]
        # Its folder of folders may belong to anyone.
        self._start(0, "munged", "--foreground", "--force", *options)
        until(lambda: (munge / "socket").exists(), 60)
        self._start(0, "slurmctld", "-D")
        for node in range(2):
            self._start(node, "slurmd", "-D", "-N", self.hosts.names[node])
        until(lambda: self.ask("sinfo", "--noheader", "--format=%D %T") == "2 idle\n", 60)
        return self

    def __exit__(self, *_) -> None:
        for daemon in reversed(self._daemons):
            daemon.kill()
            daemon.communicate()

    def _start(self, node: int, *command: str) -> None:
        self._daemons.append(self.hosts.start(node, list(command), SLURM_CONF=str(self.folder / "slurm.conf")))

    def ask(self, *command: str) -> str:
        environ = {**environment(), "SLURM_CONF": str(self.folder / "slurm.conf")}
        called = subprocess.run(self.hosts.command(0, list(command)), env=environ, capture_output=True, text=True)
        return called.stdout

    def submit(self, *arguments: str, **variables: str) -> str:
        """The job's number."""
        exported = ",".join(["ALL", *(f"{name}={value}" for name, value in variables.items())])
        return self.ask("sbatch", "--parsable", f"--chdir={self.folder}", f"--export={exported}", *arguments).strip()

    def train(self, command: list[str], **variables: str) -> str:
        """One rank a node, by the batch script. ``command``: as without it, from the script's name on."""
        small = ["--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1"]
        if not (self.folder / "fdtrain").exists():
            # The script starts `fdtrain/main.py`, and writes beside it.
            (self.folder / "fdtrain").symlink_to(ROOT / "fdtrain")
        return self.submit(*small, str(ROOT / "launch" / "slurm.sbatch"), *command[1:], **variables)

    def output(self, job: str) -> str:
        log = self.folder / f"fdtrain-{job}.log"
        return log.read_text() if log.exists() else ""

    def job(self, job: str) -> dict[str, str]:
        """The fields of ``scontrol show job``."""
        return dict(re.findall(r"(\w+)=(\S*)", self.ask("scontrol", "--oneliner", "show", "job", job)))

    def end(self, job: str, timeout: float = 600) -> tuple[str, str, int]:
        """Of a job that ends for good: state, exit code and how often it was started again."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT", "PREEMPTED")
        until(lambda: self.job(job)["JobState"] in ended, timeout)
        fields = self.job(job)
        return fields["JobState"], fields["ExitCode"], int(fields["Restarts"])
