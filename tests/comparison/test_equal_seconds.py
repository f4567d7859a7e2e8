"""Equal seconds: the steps of each variant follow from its measured speed, once."""

import json

import pytest
import yaml

from fdtrain.comparison import compare
from fdtrain.comparison.definition import load_comparison


@pytest.fixture
def comparison(launch):
    content = {
        "name": "c",
        "output": str(launch.folder / "out"),
        "base": str(launch.config),
        "seconds": 30,
        "seeds": [0, 1],
        "reference": "quick",
        "variants": [{"name": "quick"}, {"name": "slow", "set": {"training": {"lr": 0.1}}}, {"name": "broken"}],
    }
    path = launch.folder / "c.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_comparison(path)


def test_steps_follow_from_the_speed(comparison, monkeypatch):
    """The first window, in which the machine warms up, does not count."""
    timed = []

    class Schedule:
        def __init__(self, runs, slots, processes):
            self.runs = runs

        def work(self):
            for run in self.runs:
                timed.append(run.name)
                run.folder.mkdir(parents=True, exist_ok=True)
                (run.folder / "config.yaml").write_text("name: x\n")
                each = {"quick": 0.1, "slow": 0.5, "broken": 1.0}[run.variant]
                lines = [{"step": 10 * (k + 1), "train/step_seconds": each * (9 if k == 0 else 1)} for k in range(6)]
                (run.folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
                assert (run.steps, run.settings) == (60, None)
            return {"broken-speed": "no memory"} if any(run.variant == "broken" for run in self.runs) else {}

    monkeypatch.setattr(compare, "Schedule", Schedule)
    steps, failures = compare.steps_of_variants(comparison, 2, 1)
    assert steps == {"quick": 300, "slow": 60}
    assert failures == {"broken-seed0": "no memory", "broken-seed1": "no memory"}
    assert timed == ["quick-speed", "slow-speed", "broken-speed"]
    # The next time, only the one that failed is measured.
    assert compare.steps_of_variants(comparison, 2, 1)[0] == steps
    assert timed[3:] == ["broken-speed"]
