"""Runs side by side, with commands that take no time: what fails is told and stops nobody."""

import sys
from dataclasses import dataclass
from pathlib import Path

from fdtrain.comparison.schedule import Schedule, reason


@dataclass
class Stub:
    """A run whose commands are given."""

    name: str
    folder: Path
    scripts: list[str]

    def finished(self) -> bool:
        return (self.folder / "done").exists()

    def commands(self, processes: int) -> list[list[str]]:
        return [[sys.executable, "-c", script] for script in self.scripts]


def stub(folder, name, *scripts):
    done = f"import pathlib; pathlib.Path({str(folder / name / 'done')!r}).touch()"
    return Stub(name, folder / name, [*scripts, done])


def test_a_run_that_fails_is_told_and_stops_nobody(tmp_path, caplog):
    fails = "import sys; print('fdtrain: error: the disk is full.', file=sys.stderr); sys.exit(2)"
    runs = [stub(tmp_path, "a"), stub(tmp_path, "b", fails), stub(tmp_path, "c", "1 / 0"), stub(tmp_path, "d")]
    with caplog.at_level("INFO"):
        failures = Schedule(runs, slots=2, processes=1).work()
    assert failures == {"b": "the disk is full.", "c": "exit code 1: ZeroDivisionError: division by zero"}
    assert [run.finished() for run in runs] == [True, False, False, True]
    assert "b failed: the disk is full." in caplog.messages
    assert caplog.messages[-1] == "4 of 4 runs, 2 failed"


def test_a_run_that_is_finished_is_not_started(tmp_path):
    run = stub(tmp_path, "a", "raise SystemExit(3)")
    run.folder.mkdir()
    (run.folder / "done").touch()
    assert Schedule([run], slots=1, processes=1).work() == {}


def test_the_reason_of_what_says_nothing(tmp_path):
    log = tmp_path / "log"
    log.write_text("")
    assert reason(log, -9) == "exit code -9: no output"
