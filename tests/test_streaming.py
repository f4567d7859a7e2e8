"""Whole runs on data from afar, with broken samples and mixed: the same for any processes, and each one is counted."""

import json
import shutil

import pytest
from flaky import Flaky

from fdtrain.data.dataset import FILE, read_description, write_description


def test_a_run_on_broken_data_and_on_others_over_http(launch, digits, tmp_path):
    folder = shutil.copytree(digits, tmp_path / "broken")
    write_description(folder, read_description(folder).model_copy(update={"name": "broken"}))
    for path in folder.glob("train-*.tar"):
        # The second member of every shard, after a label: a header, then an array whose magic is spoilt.
        content = bytearray(path.read_bytes())
        assert content[1536:1542] == b"\x93NUMPY"
        content[1536:1542] = b"broken"
        path.write_bytes(content)
    flaky = Flaky(digits)
    flaky.faults |= {"train-000001.tar": [500, "cut"], "train-000004.tar": ["reset", "slow"]}
    settings = "data.path=null", "data.max_broken_share=0.05", "training.steps=48", "monitor.evaluate_every=48"
    mixture = "data.mixture=[{{path: {}, weight: 1}}, {{path: {}, weight: 2}}]"
    launch("name=one", *settings, mixture.format(digits, folder), processes=0)
    with flaky.serve() as url:
        settings += f"data.cache={tmp_path}/cache", "data.workers=2"
        said = launch("name=two", *settings, mixture.format(url, folder), processes=2).stderr
    assert launch.losses("two") == pytest.approx(launch.losses("one"), rel=1e-5)
    assert all(flaky.whole[f"train-{i:06d}.tar"] <= 1 for i in range(15))
    # Two thirds of 48 steps of 32 are two thirds of an epoch of 1,497, which has 15 broken ones.
    one, two = (sum(line.get("train/broken_samples", 0) for line in launch.log(name)) for name in ("one", "two"))
    assert 5 <= one == two <= 15
    assert said.count("skipping a broken sample") == two
    assert any("test/bits_per_dim" in line for line in launch.log("two"))
    assert json.loads((launch.run_folder("one") / FILE).read_text())["name"] == "digits+broken"


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (("data.path=null",), "data: set either path or mixture"),
        (("data.path=null", "data.mixture=[{path: x, weight: 1}, {path: y, weight: 1e-9}]"), "below 1/4096"),
        (("data.path=http://127.0.0.1:9", "data.fetch_timeout_s=0.1"), "http://127.0.0.1:9/dataset.json"),
    ],
)
def test_what_a_user_gets_wrong(launch, command, settings, complaint):
    said = command("train", "--config", launch.config, "--set", *settings, rc=2)
    assert complaint in said
    assert "Traceback" not in said
