"""Two hosts on this machine: network namespaces with a virtual cable, each with its own name, address and loopback.

They see the same disk and the same processes, as cluster nodes do the former.
"""

import os
import subprocess
import tempfile
from pathlib import Path

import pytest
from conftest import ROOT, environment


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


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
        return subprocess.Popen(
            self.command(host, command),
            cwd=ROOT,
            env={**environment(), **variables},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
