"""Writes the configuration of a first run beside a packed data set (docs/own_images.md)."""

import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

import fdtrain
from fdtrain.capacity.suggest import Machine, Suggestion, suggest
from fdtrain.config import Config, load_config
from fdtrain.data.dataset import DatasetDescription
from fdtrain.errors import UserError
from fdtrain.files import write_text
from fdtrain.training import hardware
from fdtrain.training.bare_loop import images_per_second

FILE = "train.yaml"

HEAD = """\
# A first configuration for {path}: {images} images of {size}x{size}, {channels}, for {machine}.
# {forecast}
# Change what you like: configs/template.yaml explains every choice, docs/configuration.md lists every key.
# A longer run is a better one, and a resumed one may be longer (training.steps).{labels}
"""


def write_first_config(folder: Path, description: DatasetDescription) -> list[str]:
    """Write ``folder/train.yaml`` unless there is one, and return what to print: a forecast, notes, and the command.

    Raises:
        UserError: it cannot be written.
    """
    file = folder / FILE
    if file.exists():
        count = _gpus()
        try:
            config: Config | None = load_config(file)
        except UserError:
            config = None
        resume = " --resume auto" if config is not None and config.folder.exists() else ""
        return [f"{file} is there already, and stays as it is. To train:", f"    {_command(file, count)}{resume}"]
    machine = this_machine()
    chosen = suggest(description, str(folder), machine)
    try:
        write_text(file, _text(chosen, description, machine))
    except OSError as error:
        raise UserError(f"cannot write {file} ({error.strerror}). The data set itself is complete.") from error
    lines = [f"{file}: {_forecast(chosen, machine)}", *(f"note: {note}" for note in chosen.notes)]
    return [*lines, "To train:", f"    {_command(file, machine.count)}"]


def this_machine() -> Machine:
    """The devices of this machine, as many as a run takes, and how fast they are, measured."""
    count = _gpus()
    device = torch.device("cuda", 0) if count else torch.device("cpu")
    old = count and torch.cuda.get_device_capability(device) < hardware.AMPERE
    memory = torch.cuda.get_device_properties(device).total_memory if count else _memory()
    rates = {precision: hardware.matrix_rate(device, precision) for precision in ("fp32", "fp16" if old else "bf16")}
    return Machine(device.type, max(1, count), memory, rates, partial(images_per_second, device=device))


def _gpus() -> int:
    """The number of GPUs that a run takes: a power of two, which can share the lanes; 0: none."""
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return 1 << there.bit_length() - 1 if there else 0


def _memory() -> int:
    """Bytes that the processes of this machine may have, those of its container where that has fewer."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return memory
    return min(memory, int(limit)) if limit.isdigit() else memory


def _text(chosen: Suggestion, description: DatasetDescription, machine: Machine) -> str:
    labels = ""
    if description.classes:
        labels = (
            f"\n# Its {len(description.classes)} classes are given to the network by network.class_conditional: true."
        )
    head = HEAD.format(
        path=chosen.config.data.path,
        images=f"{description.images(chosen.config.data.train_split):,}",
        size=description.size,
        channels={1: "grey", 3: "RGB"}.get(description.channels, f"{description.channels} channels"),
        machine=_machine(machine),
        forecast=_forecast(chosen, machine),
        labels=labels,
    )
    return head + _yaml(chosen.settings)


def _yaml(settings: dict[str, Any]) -> str:
    """A line a key, and an empty one before each section."""
    lines = []
    for name, value in settings.items():
        if isinstance(value, dict):
            lines += ["", f"{name}:", *(f"  {key}: {_flow(item)}" for key, item in value.items())]
        else:
            lines.append(f"{name}: {_flow(value)}")
    return "\n".join(lines) + "\n"


def _flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=float("inf")).splitlines()[0]


def _forecast(chosen: Suggestion, machine: Machine) -> str:
    config = chosen.config
    return (
        f"{chosen.parameters / 1e6:.2g} M parameters, {config.training.precision}, {config.training.steps:,} steps of "
        f"{config.training.global_batch} images; about {_time(chosen.seconds)} and {chosen.memory / 2**30:.1f} GiB "
        f"of tensors on {_machine(machine)}"
    )


def _machine(machine: Machine) -> str:
    if machine.device == "cpu":
        return f"this CPU ({hardware.name(torch.device('cpu'))})"
    one = hardware.name(torch.device("cuda", 0))
    return f"{machine.count} GPUs, each {one}" if machine.count > 1 else f"one GPU ({one})"


def _time(seconds: float) -> str:
    if seconds < 5400:
        return f"{max(1, round(seconds / 60))} min"
    return f"{seconds / 3600:.1f} hours" if seconds < 172800 else f"{seconds / 86400:.1f} days"


def _command(file: Path, count: int) -> str:
    """What trains on it, by the launcher that this machine needs, or as this command was called."""
    config = f"--config {shlex.quote(str(file))}"
    if count == 1 and Path(sys.argv[0]).name == "fdtrain":
        return f"fdtrain train {config}"
    main = os.path.relpath(Path(fdtrain.__file__).with_name("main.py"))
    launcher = f"deepspeed --num_accelerators {count}" if count > 1 else "python"
    return f"{launcher} {shlex.quote(main)} {config}"
