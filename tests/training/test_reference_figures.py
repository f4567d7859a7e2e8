"""The demo's run is the same as ever: figures of its first steps, recorded before the program was taken apart and
joined anew in November 2026. Whoever changes them on purpose changes what every run with this configuration is."""

import json

import pytest
from conftest import fork

BITS_PER_DIM = [4.874011516571045, 4.871530055999756, 4.864919185638428, 4.852926731109619, 4.844365119934082]
GRADIENT_NORMS = [2.514822244644165, 3.0589351654052734, 2.5968897342681885, 2.617649793624878, 2.5487377643585205]


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
