"""The demo's run is the same as ever: figures of its first steps, recorded when its pixel features began to fade and
Muon became its optimiser. Whoever changes them on purpose changes what every run with this configuration is."""

import json

import pytest
from conftest import fork

BITS_PER_DIM = [4.874011516571045, 4.870469093322754, 4.861703872680664, 4.84466028213501, 4.8321428298950195]
GRADIENT_NORMS = [3.7532882690429688, 4.004312515258789, 3.561035394668579, 3.7505037784576416, 3.547215461730957]


def test_the_first_steps_of_the_demo(tmp_path, digits):
    settings = [f"data.path={digits}", f"output={tmp_path}", "training.steps=5", "training.decay=constant"]
    settings += ["monitor.log_every=1", "monitor.evaluate_every=null", "monitor.sample_every=null"]
    arguments = [word for setting in settings for word in ("--set", setting)]
    result = fork(["fdtrain/main.py", "--config", "configs/digits.yaml", *arguments], tmp_path)
    assert result.returncode == 0, result.stderr
    log = [json.loads(line) for line in (tmp_path / "digits" / "metrics.jsonl").read_text().splitlines()]
    # Processors round differently.
    assert [line["train/bits_per_dim"] for line in log] == pytest.approx(BITS_PER_DIM, rel=1e-4)
    assert [line["train/gradient_norm"] for line in log] == pytest.approx(GRADIENT_NORMS, rel=1e-2)
