"""How the processes of a launch meet."""

import resource
import socket

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import ErrorType

from fdtrain import distributed
from fdtrain.capacity.layout import run_layout
from fdtrain.config import TrainingConfig
from fdtrain.errors import UserError
from fdtrain.evaluation.process import process_group


def test_a_port_that_another_program_uses_is_named_at_once(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        environment = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        with pytest.raises(UserError, match=f"port {port} of 127.0.0.1 is in use.*--master_port {port + 1}"):
            distributed.open_store(30)


def test_the_limit_of_open_files_is_raised_and_may_be_too_low(monkeypatch):
    """Each of many ranks has connections to the store."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for name, value in {"RANK": 0, "WORLD_SIZE": 10**7, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}.items():
        monkeypatch.setenv(name, str(value))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
        with pytest.raises(UserError, match=f"10000000 processes need 20000256 open files.* have {hard} "):
            distributed.open_store(30)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("local_rank", "visible", "shown", "index"),
    [(1, 2, None, 1), (1, 2, "0,1", 1), (3, 1, "6", 0), (0, 1, None, 0), (1, 1, None, None), (2, 2, "0,1", None)],
)
def test_the_gpu_of_a_rank(monkeypatch, local_rank, visible, shown, index):
    """Of as many as there are ranks its own; the only one that a scheduler shows to it; else one line."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    if index is not None:
        assert distributed.device() == torch.device("cuda", index)
    else:
        with pytest.raises(UserError, match=rf"GPU {local_rank} of .* where {visible} are visible"):
            distributed.device()


class Noted:
    """A group of NCCL, and the backend of it, whose watchdog has noted something."""

    def __init__(self, error):
        self.error = error

    def _get_backend(self, device):
        assert device.type == "cuda"
        return self

    def get_error(self):
        return self.error


@pytest.mark.parametrize(("noted", "failed"), [([0, 0], False), ([0, 1], True), ([2, 0], True)])
def test_what_the_watchdog_of_any_group_has_noted(monkeypatch, noted, failed):
    monkeypatch.setitem(dist.distributed_c10d._world.pg_map, object(), ("gloo", None))
    for value in noted:
        monkeypatch.setitem(dist.distributed_c10d._world.pg_map, Noted(ErrorType(value)), ("nccl", None))
    assert distributed.failed_on_device() == failed


@pytest.mark.parametrize("kind", [dist.DistBackendError, RuntimeError])
def test_what_nccl_says_of_another_rank_and_of_this_one(kind):
    """Groups of NCCL up to torch 2.14, and later ones."""
    assert distributed.is_lost_connection(kind("NCCL operation timed out"))
    assert distributed.is_lost_connection(kind("NCCL Async Error: remote process exited or there was a network error"))
    assert not distributed.is_lost_connection(kind("NCCL Async Error: unhandled cuda error (run with NCCL_DEBUG=INFO)"))
    assert not distributed.is_lost_connection(kind("NCCL error: invalid usage, Duplicate GPU detected"))
    assert not distributed.is_lost_connection(RuntimeError("Distributed package doesn't have NCCL built in"))


def test_a_run_on_the_cpu_of_a_machine_with_gpus(monkeypatch):
    """DS_ACCELERATOR=cpu: nothing is pinned, nothing overlaps, and tools compute on the CPU."""
    from fdtrain.training import engine  # DeepSpeed chooses its accelerator when it is imported.

    training = TrainingConfig(steps=1, zero_stage=1, offload="optimizer")
    layout = run_layout(training, 2, 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for accelerator, on_gpu in (("cpu", False), ("cuda", True)):
        monkeypatch.setenv("DS_ACCELERATOR", accelerator)
        zero = engine._settings(training, layout)["zero_optimization"]
        assert (zero["overlap_comm"], zero["offload_optimizer"]["pin_memory"]) == (on_gpu, on_gpu)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert distributed.device() == torch.device("cpu")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with process_group(None) as device:
        assert device == torch.device("cpu")
