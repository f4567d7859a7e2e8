"""Whole runs on data from afar, with broken samples, and on mixtures."""

import json
import shutil

import pytest
from flaky import Flaky

from fdtrain.data.dataset import FILE


def test_a_run_over_http_is_the_run_from_the_folder(launch, digits, tmp_path):
    launch("name=local", processes=0)
    flaky = Flaky(digits)
    flaky.faults |= {"train-000001.tar": [500, "cut"], "train-000004.tar": ["reset", "slow"]}
    with flaky.serve() as url:
        settings = (f"data.path={url}", f"data.cache={tmp_path}/cache", "monitor.evaluate_every=6")
        launch("name=remote", *settings, processes=2)
    assert launch.losses("remote") == pytest.approx(launch.losses("local"), rel=1e-5)
    assert all(flaky.whole[f"train-{i:06d}.tar"] <= 1 for i in range(15))
    assert any("test/bits_per_dim" in line for line in launch.log("remote"))


def test_broken_samples_are_in_the_metrics(launch, digits, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(digits, folder)
    for path in folder.glob("train-*.tar"):
        # The second member of every shard, after a label: a header, then an array whose magic is spoilt.
        content = bytearray(path.read_bytes())
        assert content[1536:1542] == b"\x93NUMPY"
        content[1536:1542] = b"broken"
        path.write_bytes(content)
    result = launch(f"data.path={folder}", "data.max_broken_share=0.05", "training.steps=46", processes=2)
    assert result.stderr.count("skipping a broken sample") >= 10
    counted = sum(line.get("train/broken_samples", 0) for line in launch.log())
    # 46 steps of 32 are 25 images short of an epoch of 1,497, which has 15 broken ones.
    assert 10 <= counted <= 15


def test_a_mixture(launch, digits, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(digits, other)
    content = json.loads((other / FILE).read_text()) | {"name": "other"}
    (other / FILE).write_text(json.dumps(content))
    mixture = f"[{{path: {digits}, weight: 2}}, {{path: {other}, weight: 1}}]"
    settings = ("data.path=null", f"data.mixture={mixture}", "monitor.evaluate_every=6")
    launch("name=one", *settings, processes=0)
    launch("name=two", *settings, "data.workers=2", processes=2)
    assert launch.losses("two") == pytest.approx(launch.losses("one"), rel=1e-5)
    assert json.loads((launch.run_folder("one") / FILE).read_text())["name"] == "digits+other"


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (("data.path=null",), "data: set either path or mixture"),
        (("data.path=null", "data.mixture=[{path: x, weight: 1}, {path: y, weight: 1e-9}]"), "below 1/4096"),
        (("data.path=http://127.0.0.1:9", "data.fetch_timeout_s=0.1"), "http://127.0.0.1:9/dataset.json"),
    ],
)
def test_what_a_user_gets_wrong(launch, settings, complaint):
    result = launch(*settings, processes=0, rc=2)
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr
