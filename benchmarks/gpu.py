"""Every kind of network's step on the GPU at hand, appended as a table to docs/lab/performance.md.

    python benchmarks/gpu.py

In float32, in TF32, in bf16, and in bf16 compiled: images/s, share of the device's matrix rate, memory. Then the whole
trainer over a bare loop, as benchmarks/step.py has it. Ends within --minutes: what is left out is named. Without a
GPU it measures nothing.
"""

import argparse
import math
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from bare_loop import bare_loop
from step import lone_trainer, random_images, take_turns

from fdtrain import distributed
from fdtrain.capacity.estimate import flops, published
from fdtrain.config import load_config
from fdtrain.networks.model import ModelSpec
from fdtrain.training.hardware import matrix_rate, set_tf32
from fdtrain.training.metrics import Utilisation
from fdtrain.training.plan import model_spec, prepare

PAGE = Path(__file__).resolve().parent.parent / "docs" / "lab" / "performance.md"
CONFIGURATIONS = ("cifar10", "cifar10_vdm", "imagenet64_dit")
"""One of each network."""


@dataclass(frozen=True)
class Variant:
    """A way to compute."""

    name: str
    precision: str
    tf32: bool = False
    compiled: bool = False
    layout: torch.memory_format = torch.contiguous_format
    minutes: float = 0.5
    """That it may take, compiler included."""


VARIANTS = (
    Variant("fp32", "fp32"),
    Variant("TF32", "fp32", tf32=True),
    Variant("bf16", "bf16"),
    Variant("bf16, compiled", "bf16", compiled=True, minutes=2.0),
    Variant("bf16, compiled, channels last", "bf16", compiled=True, layout=torch.channels_last, minutes=2.0),
)


@dataclass(frozen=True)
class Measured:
    """A network's step in one variant."""

    network: str
    variant: str
    images: int
    images_per_second: float
    tflops: float
    utilisation: float
    gib: float


def measure(
    name: str, spec: ModelSpec, variant: Variant, rate: float, images: int, steps: int, device: torch.device
) -> Measured:
    """The median step of the bare loop; half as many images wherever they do not fit."""
    set_tf32(variant.tf32)
    try:
        loop = bare_loop(spec, images, device, variant.precision, variant.compiled, layout=variant.layout)
        times = take_turns({"loop": loop}, rounds=steps, steps=1, device=device)["loop"]
        loop.close()
    except torch.OutOfMemoryError:
        if images == 1:
            raise
        # Out of the handler, whose trace holds on to the tensors.
        times = None
    gib = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
    _forget(device)
    if times is None:
        return measure(name, spec, variant, rate, images // 2, steps, device)
    speed = Utilisation(flops(spec), 1, rate).speed(images / statistics.median(times))
    figures = speed["images_per_second"], speed["tflops_per_device"], speed.get("utilisation", math.nan)
    return Measured(name, variant.name, images, *figures, gib)


def _forget(device: torch.device) -> None:
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def overhead(device: torch.device) -> str:
    """Trainer over bare loop, of the CIFAR-10 network in bf16, compiled."""
    set_tf32(False)
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"output={folder}", f"data.path={random_images(f'{folder}/data')}", "data.test_split=null"]
        settings += ["training.global_batch=256", "training.steps=1000", "monitor.evaluate_every=null"]
        settings += ["monitor.sample_every=null", "training.zero_stage=0", "training.compile=true"]
        plan = prepare("configs/cifar10.yaml", settings, resume=False)
        trainer = lone_trainer(plan, device)
        loops = {
            "bare": bare_loop(plan.spec, plan.config.training.global_batch, device, "bf16", compiled=True),
            "trainer": trainer.steps(),
        }
        times = take_turns(loops, rounds=5, steps=20, device=device)
        trainer.monitor.close()
    ratios = [b / t for b, t in zip(times["bare"], times["trainer"])]
    return (
        f"Whole trainer over the bare loop, `cifar10`, 256 images, bf16 compiled: {statistics.median(ratios):.3f} "
        f"(rounds {min(ratios):.3f} to {max(ratios):.3f})."
    )


def table(device: str, rates: dict[str, float], rows: list[Measured], notes: list[str]) -> str:
    """The section that is appended."""
    found = ", ".join(f"{name} {rate / 1e12:.1f}" for name, rate in rates.items())
    lines = [
        f"\n### {device}, {date.today():%Y-%m-%d}",
        f"`python benchmarks/gpu.py`, torch {torch.__version__}. Matrix products, TFLOP/s: {found}.\n",
        "| network | | images | images/s | TFLOP/s | of the matrix rate | peak GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| `{row.network}` | {row.variant} | {row.images} | {row.images_per_second:.1f} | {row.tflops:.2f} | "
            f"{row.utilisation:.1%} | {row.gib:.1f} |"
        )
    return "\n".join([*lines, "", *notes]) + "\n"


def append(page: Path, section: str) -> None:
    page.write_text(page.read_text().rstrip("\n") + "\n" + section)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="to end within")
    parser.add_argument("--images", type=int, default=256, help="of a step; fewer where they do not fit")
    names = [variant.name for variant in VARIANTS]
    parser.add_argument("--variants", nargs="+", choices=names, default=names[:-1], help="and then no overhead")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py: no GPU here, so nothing is measured.")
    end = time.monotonic() + 60 * arguments.minutes
    device = distributed.connect()
    torch.backends.cudnn.benchmark = True
    rates = {}
    for variant in VARIANTS[:3]:
        set_tf32(variant.tf32)
        rates[variant.name] = matrix_rate(device, variant.precision)
    rows, notes = [], []
    # The fastest way first: it is what the aims are about.
    chosen = [variant for variant in VARIANTS if variant.name in arguments.variants]
    for variant in reversed(chosen):
        for name in CONFIGURATIONS:
            if time.monotonic() + 60 * variant.minutes > end:
                notes.append(f"Left out for time: `{name}`, {variant.name}.")
                continue
            config = load_config(f"configs/{name}.yaml")
            spec = model_spec(config, published(config))
            rate = rates[variant.name.partition(", compiled")[0]]
            rows.append(measure(name, spec, variant, rate, arguments.images, 10, device))
            print(rows[-1], flush=True)
    if arguments.variants == names[:-1]:
        in_time = time.monotonic() + 60 < end
        notes.append(overhead(device) if in_time else "Left out for time: the trainer's overhead.")
    rows.sort(key=lambda row: (CONFIGURATIONS.index(row.network), names.index(row.variant)))
    section = table(torch.cuda.get_device_name(device), rates, rows, notes)
    append(PAGE, section)
    print(section)


if __name__ == "__main__":
    main()
