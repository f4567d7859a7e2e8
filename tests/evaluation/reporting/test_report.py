import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from markupsafe import escape
from PIL import Image

from fdtrain.errors import UserError
from fdtrain.evaluation.reporting import report, result, run_folder

VERSION_1 = Path(__file__).parent / "version_1"
HOSTILE = "<script>alert('x')</script>\"&"


@pytest.fixture
def folder(tmp_path):
    """A run whose every file speaks of something hostile."""
    folder = tmp_path / "run"
    (folder / "evaluation").mkdir(parents=True)
    (folder / "samples").mkdir()
    (folder / "config.yaml").write_text(f"name: {json.dumps(HOSTILE)}\n")
    shard = {"file": HOSTILE.replace("/", "-"), "images": 300, "bytes": 1, "sha256": "0" * 64}
    dataset = {"version": 1, "name": "cifar10", "source": HOSTILE, "size": 32, "channels": 3, "levels": 256}
    dataset |= {"classes": [HOSTILE], "encoding": HOSTILE}
    write(
        folder / "dataset.json",
        dataset | {"splits": {"train": [shard, shard | {"file": "b.tar"}], "test": [shard | {"file": "c.tar"}]}},
    )
    write(folder / "environment.json", {"device": HOSTILE, "processes": 8, "commit": HOSTILE})
    lines = [
        {
            "step": step,
            "train/bits_per_dim": 5 - step / 100,
            "train/images_seen": 128 * step,
            "train/step_seconds": 36.0,
        }
        for step in (100, 200)
    ]
    lines.append({"step": 200, "test/bits_per_dim": 3.1})
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 3')
    elbo = {"bits_per_dim": 3.12345, "error_draws": 0.001, "error_images": 0.002, "draws": 20}
    about = {"images": 300, "images_in_split": 300, "dataset": HOSTILE, "split": HOSTILE, "step": 200, "dtype": HOSTILE}
    change("nll_test_first2", folder / "evaluation" / "nll_test.json", about, elbo=elbo, ode={"trace": HOSTILE})
    features = {"name": HOSTILE, "sha256": HOSTILE, "input": HOSTILE}
    frechet = {"name": HOSTILE, "value": 12.5, "values": [12, 13], "spread": 0.7, "kid": 0.01, "solver": HOSTILE}
    change("frechet_digits-features", folder / "evaluation" / "frechet_x.json", frechet, features=features)
    hostile = {"distance": HOSTILE, "split": HOSTILE, "source": HOSTILE, "device": HOSTILE}
    change("curve_test", folder / "evaluation" / "curve_test.json", hostile, features=features)
    Image.new("RGB", (640, 400)).save(folder / "evaluation" / "curve_test_quality.png")
    Image.new("RGB", (400, 400)).save(folder / "samples" / "step_00000200.png")
    return folder


def write(path, content):
    path.write_text(json.dumps(content))


def change(name, path, keys, **nested):
    """A result of the first version with other values."""
    content = json.loads((VERSION_1 / f"{name}.json").read_text()) | keys
    write(path, content | {key: content[key] | values for key, values in nested.items()})


def page_of(folder):
    return report.page(run_folder.read(folder), None)


def test_page_says_what_the_files_say_and_executes_nothing(folder):
    page = page_of(folder)
    assert "<script" not in page
    assert page.count(str(escape(HOSTILE))) > 10
    assert "default-src 'none'" in page
    for part in ("3.1235", "0.0010 / 0.0020", "12.500 ± 0.700", "KID 0.0100", "200 steps, 25,600 images seen"):
        assert part in page
    assert "2.0 hours" in page
    assert "train: 600 images, test: 300 images" in page
    # Nothing is fetched: every address is data.
    assert set(re.findall(r'(?:src|href)="(.{5})', page)) == {"data:"}


def test_published_figures_are_of_the_same_data_set_alone(folder):
    assert "Karras et al. 2022" in page_of(folder)
    for name, has, lacks in (
        ("imagenet32-old", '<td data-head="bits/dim" class="number">3.69<', ">3.43<"),
        ("imagenet32-new", ">3.43<", ">3.69<"),
        ("digits", "figures of other data sets do not compare", "Zheng"),
    ):
        content = json.loads((folder / "dataset.json").read_text())
        write(folder / "dataset.json", content | {"name": name})
        page = page_of(folder)
        assert has in page
        assert lacks not in page


def test_what_is_missing_is_said_with_the_command_that_makes_it(tmp_path):
    folder = tmp_path / "a run"
    folder.mkdir()
    (folder / "config.yaml").write_text("name: x\n")
    page = page_of(folder)
    for command in ("nll", "fid", "curve"):
        assert f"<code>fdtrain evaluate {command} '{folder}'" in html.unescape(page)
    assert "<code>fdtrain sample" in page
    assert "not recorded in the run" in page
    assert "it has not logged a step" in page


@pytest.mark.parametrize("text", ["{", "[]", "", "[" * 100_000])
def test_a_damaged_result_is_named(folder, text):
    path = folder / "evaluation" / "nll_test.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"nll_test.json is damaged"):
        page_of(folder)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("nll_test", {"ode": HOSTILE}, "ode"),
        ("nll_test", {"elbo": {"bits_per_dim": 3.1}}, "elbo.error_draws"),
        ("frechet_x", {"values": [[]]}, "values.0"),
        ("curve_test", {"images": HOSTILE}, "images"),
    ],
)
def test_a_result_with_a_wrong_value_is_named(folder, name, change, reason):
    path = folder / "evaluation" / f"{name}.json"
    write(path, json.loads(path.read_text()) | change)
    with pytest.raises(UserError, match=rf"{name}.json is damaged \({reason}: .*\)\. Delete it, and make it again"):
        page_of(folder)


def test_results_of_other_versions(folder):
    path = folder / "evaluation" / "nll_test.json"
    content = json.loads(path.read_text())
    before = page_of(folder)
    # A key that this version does not know; a record that is no result.
    write(path, content | {"later": 1})
    write(folder / "evaluation" / "other.json", {"kind": "other"})
    assert page_of(folder) == before
    write(path, content | {"version": 2})
    with pytest.raises(UserError, match=r"nll_test.json: version 2, this fdtrain reads 1"):
        page_of(folder)


@pytest.mark.parametrize("file", sorted(VERSION_1.glob("*.json")), ids=lambda file: file.stem)
def test_a_result_is_written_as_the_first_version_wrote_it(file, tmp_path):
    numbers = result.read(file)
    result.write(numbers, tmp_path / "again.json", "--json")
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads(file.read_text())
    assert result.read(tmp_path / "again.json") == numbers


def test_damaged_configuration_is_named(folder):
    (folder / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"config.yaml is not YAML"):
        page_of(folder)


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [500, 1200])
def test_page_in_a_browser(folder, tmp_path, width):
    """Rendered, it is no wider than the window, its pictures are shown, and it follows the dark scheme."""
    page = page_of(folder)
    # The page itself admits no script; this one measures it.
    page = re.sub(r"<meta http-equiv[^>]*>", "", page)
    measure = """<script>window.onload = () => { document.title = JSON.stringify({
        wide: document.documentElement.scrollWidth, window: innerWidth,
        pictures: [...document.images].map(i => i.naturalWidth),
        back: getComputedStyle(document.body).backgroundColor }) }</script>"""
    file = tmp_path / "page.html"
    file.write_text(page + measure)
    for scheme, back in (("0", "rgb(20, 24, 29)"), ("1", "rgb(255, 255, 255)")):
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        flags += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / scheme}"]
        flags += [f"--window-size={width},900", f"--blink-settings=preferredColorScheme={scheme}", "--dump-dom"]
        done = subprocess.run([CHROMIUM, *flags, file.as_uri()], capture_output=True, text=True, timeout=120)
        found = json.loads(re.search(r"<title>(.*?)</title>", done.stdout).group(1))
        assert found["wide"] <= found["window"] == width
        assert found["pictures"] == [400, 640]
        assert found["back"] == back
