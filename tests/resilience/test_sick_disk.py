"""A disk that is full, freed, read-only or gone under a run: one line, the right exit code, and nothing lost."""

import subprocess
import time
from contextlib import suppress

import psutil
import pytest
from conftest import error_of
from jobs import end, start, wait_for_line, wait_for_step
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fdtrain.checkpoint import store

SETTINGS = ("training.steps=100000", "checkpoint.every=2")


class Disk:
    """A small one, in memory, at ``folder``."""

    def __init__(self, folder):
        self.folder = folder

    def fill(self) -> None:
        with (self.folder / "other people's").open("wb", buffering=0) as file:
            for size in (1 << 16, 1):
                with suppress(OSError):
                    while True:
                        file.write(b"x" * size)

    def free(self) -> None:
        (self.folder / "other people's").unlink()

    def remount(self, how: str) -> None:
        """Waits until no file is open for writing."""
        deadline = time.monotonic() + 60
        while subprocess.run(["mount", "-o", f"remount,{how}", str(self.folder)], capture_output=True).returncode:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def disk(launch):
    """Under the runs of ``launch``."""
    folder = launch.folder / "runs"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs to mount")
    yield Disk(folder)
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_from_the_start_then_for_a_while_and_again_when_asked_to_end(launch, disk):
    """Each step is logged once; 75 is said when there is room for the checkpoint and not before."""
    disk.fill()
    assert "No space left on device" in error_of(launch(processes=0, rc=2).stderr)
    disk.free()
    job = start(launch.command("training.steps=100000", "checkpoint.every=100000", processes=0))
    wait_for_step(launch, 3, job)
    disk.fill()
    wait_for_line(job, "fdtrain: warning: the log cannot be written ([Errno 28] No space left on device)")
    disk.free()
    wait_for_line(job, "fdtrain: the log is written again.")
    disk.fill()
    job.terminate()
    wait_for_line(job, "could not be written ([Errno 28] No space left on device); there is none yet. Trying again")
    disk.free()
    error = end(job)
    assert job.returncode == 75, error
    (saved,) = (launch.run_folder() / "checkpoints").glob("step_*")
    steps = list(range(1, int(saved.name[5:]) + 1))
    assert [line["step"] for line in launch.log()] == steps
    board = EventAccumulator(str(launch.run_folder() / "tensorboard"), {"scalars": 0})
    board.Reload()
    assert [event.step for event in board.Scalars("train/bits_per_dim")] == steps


def ended_and_resumed(launch, job: subprocess.Popen, mended=lambda: None) -> str:
    """What a run says that something has ended with 2; it goes on, with each step once."""
    output, error = job.communicate(timeout=180)
    assert job.returncode == 2, error
    assert "Traceback" not in output
    mended()
    steps = max(map(store.step_of, store.committed(launch.run_folder())), default=0) + 3
    launch(f"training.steps={steps}", processes=0, resume=True)
    assert [line["step"] for line in launch.log()] == list(range(1, steps + 1))
    return error_of(error)


def test_remounted_read_only(launch, disk):
    job = start(launch.command(*SETTINGS, "checkpoint.max_failures=1", processes=0))
    wait_for_step(launch, 10, job)
    disk.remount("ro")
    message = ended_and_resumed(launch, job, mended=lambda: disk.remount("rw"))
    assert "could not be written ([Errno 30] Read-only file system" in message


def test_a_folder_that_is_renamed_under_a_run(launch):
    """All ranks end by one line."""
    job = start(launch.command(*SETTINGS, processes=2, faults={"lock": {"beat": 0.05}}))
    wait_for_step(launch, 10, job)
    folder, away = launch.run_folder(), launch.folder / "away"
    folder.rename(away)

    def put_back():
        assert not folder.exists()
        away.rename(folder)

    message = ended_and_resumed(launch, job, mended=put_back)
    assert f"{folder} was deleted, renamed or replaced while the run was at work" in message


def test_a_killed_reading_process(launch):
    job = start(launch.command(*SETTINGS, processes=0))
    wait_for_step(launch, 10, job)
    (worker,) = psutil.Process(job.pid).children()
    worker.kill()
    message = ended_and_resumed(launch, job)
    assert "a reading process was lost (DataLoader worker (pid" in message
    assert "go on with --resume auto" in message
