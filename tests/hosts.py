"""Two hosts on this machine: network namespaces with a virtual cable, each with its own name, address and loopback.

They see the same disk and the same processes, as cluster nodes do the former.
"""

import ctypes
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import ROOT, environment
from forked import Forked

NEW_NAMES_AND_MOUNTS = 0x04000000 | 0x00020000
"""CLONE_NEWUTS and CLONE_NEWNS of ``unshare(2)``."""
AS_ONE_OF = "import sys, forked, hosts; hosts.enter(*sys.argv[1:3]); forked.run_words(sys.argv[3:])"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def enter(name: str, known: str) -> None:
    """Make this process, which was forked, one of a host."""
    libc = ctypes.CDLL(None)
    with open(f"/run/netns/{name}") as network:
        assert libc.setns(network.fileno(), 0) == 0
    assert libc.unshare(NEW_NAMES_AND_MOUNTS) == 0
    socket.sethostname(name)
    for how in (["--make-rprivate", "/"], ["--bind", known, "/etc/hosts"]):
        subprocess.run(["mount", *how], check=True)


class Hosts:
    """Their names carry this process's number, so that other tests may run beside."""

    def __init__(self):
        number = os.getpid()
        self.names = [f"fd{number}a", f"fd{number}b"]
        self.addresses = ["10.213.77.1", "10.213.77.2"]
        self._known = Path(tempfile.gettempdir(), f"{self.names[0]}.hosts")

    def __enter__(self) -> "Hosts":
        known = ["127.0.0.1 localhost", *map(" ".join, zip(self.addresses, self.names))]
        self._known.write_text("".join(f"{line}\n" for line in known))
        try:
            for name in self.names:
                ip("netns", "add", name)
            ip("link", "add", self.names[0], "netns", self.names[0], "type", "veth", "peer", "name", self.names[1],
               "netns", self.names[1])  # fmt: skip
            for name, address in zip(self.names, self.addresses):
                ip("-n", name, "address", "add", f"{address}/24", "dev", name)
                ip("-n", name, "link", "set", "lo", "up")
            self.mend()
        except FileNotFoundError:
            pytest.skip("iproute2 is not installed")
        except subprocess.CalledProcessError as error:
            self.__exit__()
            pytest.skip(f"no rights to make network namespaces: {error.stderr.strip()}")
        return self

    def __exit__(self, *_) -> None:
        for name in self.names:
            found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
            if found.returncode == 0:
                subprocess.run(["kill", "-KILL", *found.stdout.split()], capture_output=True)
                subprocess.run(["ip", "netns", "delete", name], capture_output=True)
        self._known.unlink()

    def cut(self) -> None:
        ip("-n", self.names[0], "link", "set", self.names[0], "down")

    def mend(self) -> None:
        for name in self.names:
            ip("-n", name, "link", "set", name, "up")

    def command(self, host: int, command: list[str]) -> list[str]:
        """As ``host`` runs it."""
        # With this machine's /sys, unlike `ip netns exec`: SLURM looks for control groups there.
        become = f'hostname {self.names[host]} && mount --bind {self._known} /etc/hosts && exec "$@"'
        enter = ["nsenter", f"--net=/run/netns/{self.names[host]}", "unshare", "--uts", "--mount"]
        return [*enter, "sh", "-c", become, "sh", *command]

    def start(self, host: int, command: list[str], **variables: str) -> subprocess.Popen:
        return self._start(subprocess.Popen, self.command(host, command), variables)

    def fork(self, host: int, command: list[str], **variables: str) -> subprocess.Popen:
        """A command of Python (forked.py)."""
        words = [sys.executable, "-c", AS_ONE_OF, self.names[host], str(self._known), *command]
        return self._start(Forked, words, variables)

    def _start(self, kind: type[subprocess.Popen], command: list[str], variables: dict[str, str]) -> subprocess.Popen:
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        return kind(command, cwd=ROOT, env={**environment(), **variables}, **streams)
