"""The processes of a launch: who this one is, how they share work, and the few calls by which they talk.

Any launcher will do that sets RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as DeepSpeed's and
torchrun do; without one there is a single process.
"""

import errno
import os
import platform
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import ErrorType, Store
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from fdtrain.errors import LostPeer, Preempted, UserError

Value = TypeVar("Value")
ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
"""What a launcher would tell a process without others."""
PATIENCE = 600.0
"""Seconds that a rank waits for another in a call of theirs, unless a run says otherwise."""
OWN_FILES = 256
"""That a rank may have open beside the connections of all others to its store."""
NCCL = dict.fromkeys(
    ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_RETHROW_CUDA_ERRORS", "TORCH_NCCL_DUMP_ON_TIMEOUT"), "0"
)
"""Where nobody has set them otherwise: torch's watchdogs of NCCL (one up to torch 2.14, another since) note errors, and
end no process before :mod:`fdtrain.resilience.heartbeat` can say whose fault it is."""
CONNECTION = re.compile("gloo|NCCL (?:operation|communicator|Async)")
OWN_FAULT = re.compile("unhandled cuda error|invalid usage|invalid argument")
"""In what NCCL says of this rank: its GPU has failed, or is another rank's too."""


def world_size() -> int:
    """Processes of this launch, known from the launcher before any process group exists."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_size() -> int:
    """Processes of this launch on this host; 1 if the launcher does not say (DeepSpeed's and torchrun do)."""
    return int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or 1)


def on_gpu() -> bool:
    """Whether the processes compute on GPUs: where there are any, unless DS_ACCELERATOR says cpu."""
    return torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR", "cuda") == "cuda"


def device() -> torch.device:
    """This rank's: its GPU, or the CPU (:func:`on_gpu`).

    Raises:
        UserError: there are fewer GPUs than ranks on this machine.
    """
    if not on_gpu():
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    if local_rank() < visible:
        return torch.device("cuda", local_rank())
    if visible == 1 and "CUDA_VISIBLE_DEVICES" in os.environ:
        # A scheduler shows each task its own alone.
        return torch.device("cuda", 0)
    raise UserError(
        f"rank {rank()} is to have GPU {local_rank()} of {platform.node()} (LOCAL_RANK), where {visible} are visible, "
        "counted from 0. Launch as many processes as there are GPUs, or show each its own (CUDA_VISIBLE_DEVICES)."
    )


def check_launcher() -> None:
    """Refuse a launch whose restarts could not be relied upon.

    Raises:
        UserError: torchrun would keep one store for all attempts, in which a restarted rank reads the addresses of
            the dead ones if it is quicker than those who replace them.
    """
    restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")
    if restarts != "0" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise UserError(
            f"torchrun --max-restarts {restarts}: its attempts share a store, so a new rank may call on dead ones. "
            "Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in torchrun's environment on every machine."
        )


def open_store(timeout: float, serve: bool = True) -> TCPStore:
    """A connection to the store by which the ranks of a launch meet; one process alone has its own.

    Args:
        timeout: seconds that this and any later call to it waits.
        serve: let rank 0 run the store, unless torchrun's agent does. Once a process.

    Raises:
        LostPeer: there is no store: rank 0 has not come.
        UserError: another program listens where rank 0 is to run the store, or that may not have a connection of
            each rank.
    """
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The usual limit of 1,024 is for programs that cannot count further.
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    for name, value in ALONE.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_PORT", "0" if world_size() == 1 else "29500")
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    serve = serve and rank() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    # Each rank has two connections: that of its heartbeat must not wait for the other's.
    if serve and files < (needed := 2 * world_size() + OWN_FILES):
        raise UserError(
            f"{world_size()} processes need {needed} open files in rank 0, which may have {files} on "
            f"{platform.node()}. Raise the hard limit there (ulimit -Hn)."
        )
    try:
        # Not waiting for the others here, which the heartbeat is to watch meanwhile.
        return TCPStore(
            host,
            port,
            is_master=serve,
            timeout=timedelta(seconds=timeout),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except (dist.DistStoreError, dist.DistNetworkError) as error:
        if serve and errno.errorcode[errno.EADDRINUSE] in str(error):
            raise UserError(
                f"port {port} of {host} is in use, perhaps by another launch. Choose another one for this: "
                f"--master_port {port + 1} for deepspeed, --master-port for torchrun."
            ) from error
        raise LostPeer(
            f"the {world_size()} processes of this run have not all come together at {host} within {timeout:g} s "
            f"({str(error).splitlines()[0]}). See what became of the others, and launch again."
        ) from error


def connect(patience: float = PATIENCE, store: Store | None = None) -> torch.device:
    """Join the process group (of one, when started without a launcher), in which a call waits ``patience`` seconds for
    another rank, and return this rank's device."""
    store = store or open_store(patience)
    mine = device()
    if mine.type == "cuda":
        torch.cuda.set_device(mine)
        # From which DeepSpeed takes it.
        os.environ["LOCAL_RANK"] = str(mine.index)
        for name, value in NCCL.items():
            os.environ.setdefault(name, value)
    elif "OMP_NUM_THREADS" not in os.environ:
        # Processes that each take all cores get in each other's way.
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_size()))
    # Gloo would connect every rank with every other, of which a ring needs two: a thousand sockets a rank, and a
    # million in all.
    os.environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")
    dist.init_process_group(
        "nccl" if mine.type == "cuda" else "gloo",
        store=store,
        rank=rank(),
        world_size=world_size(),
        timeout=timedelta(seconds=patience),
    )
    return mine


@contextmanager
def connected(patience: float, store: Store) -> Iterator[torch.device]:
    """:func:`connect`, and leave the group where all ranks come to the end together.

    A thread of the group that is still busy when the interpreter ends would bring the process down with it. After an
    error nothing is left: that waits for the others, and for the device.
    """
    mine = connect(patience, store)
    try:
        yield mine
    except Preempted:
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


@contextmanager
def visiting() -> Iterator[None]:
    """Around the run of a process that goes on afterwards: its process group ends, and the variables of a launch go.

    Raises:
        UserError: the process is one of several, or has a process group already.
    """
    if world_size() > 1:
        raise UserError(f"this is one process of {world_size()}, and in Python one trains alone. Use fdtrain train.")
    if dist.is_initialized():
        raise UserError(
            "torch.distributed is in use in this process, by another run or by your own program. Wait until that run "
            "ends, or call torch.distributed.destroy_process_group() first."
        )
    before = {name: os.environ.get(name) for name in (*ALONE, "MASTER_PORT")}
    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def is_lost_connection(error: BaseException | None) -> bool:
    """Whether an error of a call between ranks means that another is gone or does not answer."""
    kinds = (dist.DistBackendError, dist.DistStoreError, dist.DistNetworkError)
    lost = isinstance(error, kinds) or (isinstance(error, RuntimeError) and bool(CONNECTION.search(str(error))))
    return lost and not OWN_FAULT.search(str(error))


def failed_on_device() -> bool:
    """Whether a call between ranks has failed that only the device waits for, and will for ever, while the main
    program waits for the device: NCCL's watchdog has noted it."""
    groups = [group for group, (backend, _) in list(dist.distributed_c10d._world.pg_map.items()) if backend == "nccl"]
    return any(group._get_backend(torch.device("cuda")).get_error() != ErrorType.SUCCESS for group in groups)


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum over ranks, in place; of one rank, which need not have joined a group, what it has."""
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def broadcast(value: Value) -> Value:
    """Rank 0's value of a small picklable object; of one rank, which need not have joined a group, its own."""
    if world_size() == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box)
    return box[0]


def found_by_first(find: Callable[[], Value]) -> Value:
    """:func:`broadcast` of what rank 0 finds, where the ranks could find different things; every rank raises its
    UserError."""
    found: Value | None = None
    with told_to_all():
        if rank() == 0:
            found = find()
    return broadcast(found)  # pyright: ignore[reportReturnType]


@contextmanager
def told_to_all() -> Iterator[None]:
    """Around what some ranks may find wrong, on every rank: all raise the first one's UserError."""
    problem = None
    try:
        yield
    except UserError as error:
        problem = str(error)
    if problem := next(filter(None, of_all(problem)), None):
        raise UserError(problem)


def of_all(value: Value) -> list[Value]:
    """Small picklable objects of all ranks, in order, on every rank."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def share(count: int) -> range:
    """This rank's part of ``range(count)``."""
    return range(count * rank() // world_size(), count * (rank() + 1) // world_size())


def chunks(work: range, size: int) -> list[range]:
    """``work`` in portions of ``size``, the last of which may be less."""
    return [work[i : i + size] for i in range(0, len(work), size)]


def gather(part: Tensor, count: int, device: torch.device) -> Tensor:
    """The parts ``(len(share(count)), ...)`` of all ranks in order, ``(count, ...)``, on every rank's CPU."""
    mine = share(count)
    whole = torch.zeros((count, *part.shape[1:]), dtype=part.dtype, device=device)
    whole[mine.start : mine.stop] = part.to(device)
    return all_reduce_sum(whole).cpu()
