"""What checkpoints cost: the pause of training, bytes on the disk, and the start of a resumed run.

    python benchmarks/checkpoint.py --config configs/digits.yaml --data data/digits
    python benchmarks/checkpoint.py --config configs/cifar10.yaml --set training.global_batch=2 --set training.lanes=2 \
        --set training.precision=fp32 --saves 3 --steps 3

Pause: seconds for which a step has to wait, of our saves and of DeepSpeed's own (the peer), which take turns in one
process; both beside the median step without a save, and the steps while the bytes are being written. Bytes: of one
checkpoint, over weights, average and two moments once, in float32. Start: from the command to the end of the first
step, of a fresh run and of a resumed one, which take turns.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from step import lone_trainer, random_images

from fdtrain import distributed
from fdtrain.training.plan import prepare
from fdtrain.training.trainer import Trainer


def pauses(trainer: Trainer, saves: int, steps: int, folder: Path) -> None:
    """Print the pause of ours and of DeepSpeed's, and the size of both."""
    loop = trainer.steps()
    times = {"plain": [], "writing": [], "ours": [], "DeepSpeed's": []}

    def run_steps(kind: str) -> int:
        for _ in range(steps):
            begin = time.perf_counter()
            done = next(loop)
            trainer.writer.exchange()
            times[kind].append(time.perf_counter() - begin)
        return done

    run_steps("plain")
    times["plain"].clear()
    for round_ in range(saves + 1):
        done = run_steps("plain")
        begin = time.perf_counter()
        trainer.save(done)
        times["ours"].append(time.perf_counter() - begin)
        run_steps("writing")
        trainer.writer.finish()
        begin = time.perf_counter()
        trainer.engine.engine.save_checkpoint(str(folder), tag="deepspeed", save_latest=False)
        times["DeepSpeed's"].append(time.perf_counter() - begin)
        if not round_:  # the first warms up: our buffers are made at the first save
            first = times["ours"].pop()
            times["DeepSpeed's"].pop()
    step = statistics.median(times["plain"])
    parameters = sum(shape.numel() for shape in trainer.engine.shapes.values())
    print(
        f"{trainer.config.name}: {parameters:,} parameters, a step takes {step:.3f} s (median of {len(times['plain'])})"
    )
    for kind, path in (("ours", trainer.writer.last), ("DeepSpeed's", folder / "deepspeed")):
        pause = statistics.median(times[kind])
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        if kind != "ours":
            size += 4 * parameters  # it holds no average
        print(
            f"{kind:12} pause {pause:.4f} s = {pause / step:.2f} steps; "
            f"{size / 1e6:.1f} MB = {size / (16 * parameters):.3f} of the state once"
        )
    writing = statistics.median(times["writing"])
    print(f"first save of ours {first:.4f} s; a step while it is being written {writing:.3f} s = {writing / step:.2f}")


def starts(config: str, settings: list[str], folder: Path, rounds: int) -> None:
    """Print the time from the command to the first step, fresh and resumed."""
    times = {"fresh": [], "resumed": []}
    for _ in range(rounds):
        shutil.rmtree(folder, ignore_errors=True)
        for kind, last in (("fresh", 1), ("resumed", 2)):
            command = [sys.executable, "fdtrain/main.py", "--config", config, "--resume", "auto"]
            for setting in [*settings, f"output={folder}", f"training.steps={last}", "monitor.log_every=1"]:
                command += ["--set", setting]
            begin = time.perf_counter()
            with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as job:
                for line in job.stderr:
                    if line.startswith(f"step {last}/"):
                        times[kind].append(time.perf_counter() - begin)
    fresh, resumed = (statistics.median(times[kind]) for kind in ("fresh", "resumed"))
    print(f"start to first step: fresh {fresh:.2f} s, resumed {resumed:.2f} s = {resumed / fresh:.3f} (of {rounds})")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--data", help="a packed data set; default: random images of 32x32x3")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--saves", type=int, default=9)
    parser.add_argument("--steps", type=int, default=8, help="between two saves")
    parser.add_argument("--starts", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        data = arguments.data or random_images(f"{folder}/data")
        settings = [f"data.path={data}", "data.test_split=null", "checkpoint.every=1000000", *arguments.set]
        settings += ["monitor.evaluate_every=null", "monitor.sample_every=null"]
        steps = (arguments.saves + 2) * 2 * arguments.steps + 1
        plan = prepare(arguments.config, [*settings, f"output={folder}/runs", f"training.steps={steps}"], resume=False)
        device = distributed.connect()
        trainer = lone_trainer(plan, device)
        pauses(trainer, arguments.saves, arguments.steps, folder / "peer")
        trainer.monitor.close()
        starts(arguments.config, settings, folder / "starts", arguments.starts)


if __name__ == "__main__":
    main()
