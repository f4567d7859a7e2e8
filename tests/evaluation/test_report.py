"""The page of a run, and its plots: what the files say is there as text, whatever it is."""

import base64
import csv
import hashlib
import html
import io
import json
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import models
import numpy as np
import packed
import pytest
import torch
from conftest import ROOT
from markupsafe import escape
from PIL import Image
from safetensors.torch import save_file

from fdtrain.data.dataset import DatasetDescription
from fdtrain.errors import UserError, printable
from fdtrain.evaluation import figures, result, run_folder, run_page
from fdtrain.evaluation.compared import bits_of
from fdtrain.evaluation.figures import COLOURS, Line, Plot
from fdtrain.evaluation.pictures import save_png
from fdtrain.networks.model import Model

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
    about = {"solver": HOSTILE, "grid": HOSTILE, "nfe": 1, "seed": 7, "step": 200, "images": 16}
    save_png(torch.zeros(3, 400, 400, dtype=torch.uint8), folder / "samples" / "step_00000200.png", about)
    about |= {"times": [1.0, 0.5, 0.0], "nfe": 25}
    save_png(torch.zeros(3, 400, 300, dtype=torch.uint8), folder / "samples" / "step_00000200_path.png", about)
    return folder


def write(path, content):
    path.write_text(json.dumps(content))


def change(name, path, keys, **nested):
    """A result of the first version with other values."""
    content = json.loads((VERSION_1 / f"{name}.json").read_text()) | keys
    write(path, content | {key: content[key] | values for key, values in nested.items()})


def page_of(folder):
    return run_page.of_run(run_folder.read(folder))


@pytest.fixture
def evaluated(tmp_path):
    """A run on 20 numbered test images, number i of which has 2 + i / 10 bits/dim."""
    data, folder = tmp_path / "data", tmp_path / "small"
    packed.pack(data, [20])
    description = json.loads((data / "dataset.json").read_text())
    description["splits"] = {"train": [], "test": description["splits"]["train"]}
    write(data / "dataset.json", description)
    (folder / "evaluation").mkdir(parents=True)
    (folder / "samples").mkdir()
    (folder / "config.yaml").write_text(f"name: small\ndata: {{path: {data}, test_split: test}}\n")
    shutil.copy(data / "dataset.json", folder / "dataset.json")
    fingerprint = hashlib.sha256(description["splits"]["test"][0]["sha256"].encode()).hexdigest()
    about = {"images": 20, "images_in_split": 20, "fingerprint": fingerprint, "split": "test"}
    change("nll_test_first2", folder / "evaluation" / "nll_test.json", about)
    save_file({"elbo": 2 + torch.arange(20) / 10}, folder / "evaluation" / "nll_test.safetensors")
    save_png(torch.zeros(3, 8, 8, dtype=torch.uint8), folder / "samples" / "final.png", {"images": 4})
    return folder


def shown(page, caption):
    """The pixels of the picture with this caption."""
    data = re.search(rf'base64,([^"]+)" alt="{re.escape(str(escape(caption)))}"', page).group(1)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_page_says_what_the_files_say_and_executes_nothing(folder):
    page = page_of(folder)
    assert "<script" not in page
    assert page.count(str(escape(HOSTILE))) > 10
    assert "default-src 'none'" in page
    for part in ("3.1235", "0.0010 / 0.0020", "12.500 ± 0.700", "KID 0.0100", ">200<", ">25,600<"):
        assert part in page
    assert "2 hours" in page
    assert "train: 600 images, test: 300 images" in page
    targets = re.findall(r'<a href="([^"]+)"', page)
    assert "https://arxiv.org/abs/2206.00364" in targets
    assert all(to.startswith("https://arxiv.org/abs/") or f'id="{to[1:]}"' in page for to in targets)
    # Nothing is fetched: every picture is data.
    assert set(re.findall(r' src="(.{5})', page)) == {"data:"}
    assert page.count('src="data:image/svg') == 6
    assert "<span>t = 1</span><span>t = 0.5</span><span>t = 0</span>" in page
    assert f"solver {escape(HOSTILE)}, grid {escape(HOSTILE)}, 25 evaluations of the network per image" in page
    assert "1 evaluation of the network per image, seed 7, step 200." in page


def test_real_images_and_the_hardest_and_easiest(evaluated):
    page = page_of(evaluated)
    # As many as on the sheet of samples, at equal distances: 0, 5, 10, 15.
    sheet = shown(page, "Real images of the split 'test'.")
    zoom = sheet.shape[0] // 2 // 4
    assert [
        packed.number(sheet[top : top + 2 * zoom : zoom, left : left + 2 * zoom : zoom].transpose(2, 0, 1))
        for top in (2, 4 + 4 * zoom)
        for left in (2, 4 + 4 * zoom)
    ] == [0, 5, 10, 15]
    for bits, number in (("2.000", 0), ("2.700", 7), ("3.900", 19), ("3.200", 12)):
        assert packed.number(shown(page, bits).transpose(2, 0, 1)) == number
    assert 'alt="2.800"' not in page


def test_held_out_images_come_before_more_of_the_training_images(evaluated):
    about = {"images": 1000, "images_in_split": 1000, "split": "train"}
    change("nll_test_first2", evaluated / "evaluation" / "nll_train.json", about, elbo={"bits_per_dim": 1.5})
    page = page_of(evaluated)
    assert re.search(r"<b>([0-9.]+)", page).group(1) != "1.5000"
    assert "all 20 images of digits/test" in page
    assert bits_of(run_folder.read(evaluated))["elbo"].result.split == "test"


def test_images_that_cannot_be_had_are_said_so(evaluated):
    result_file = evaluated / "evaluation" / "nll_test.json"
    write(result_file, json.loads(result_file.read_text()) | {"fingerprint": "0"})
    assert "The images cannot be shown: &#39;test&#39; has other shards than the result." in page_of(evaluated)
    shutil.rmtree(evaluated.parent / "data")
    assert "No real images to stand beside them: the data of" in page_of(evaluated)
    save_file({"elbo": torch.zeros(3)}, evaluated / "evaluation" / "nll_test.safetensors")
    with pytest.raises(UserError, match=r"does not have the values of 20 images"):
        page_of(evaluated)
    (evaluated / "evaluation" / "nll_test.safetensors").write_bytes(b"{")
    with pytest.raises(UserError, match=r"nll_test.safetensors is damaged"):
        page_of(evaluated)


def test_network_and_parameters_are_those_of_the_checkpoint(evaluated):
    checkpoint = evaluated / "checkpoints" / "step_00000003"
    checkpoint.mkdir(parents=True)
    models.DIGITS.save(checkpoint / "model.json")
    count = sum(p.numel() for p in Model(models.DIGITS).parameters())
    page = page_of(evaluated)
    assert "ddpmpp: channels 8" in page
    assert f'<td data-head="">parameters</td><td data-head="value">{count:,}</td>' in page


def test_published_figures_are_of_the_same_data_set_alone(folder):
    (folder / "evaluation" / "curve_test.json").unlink()
    assert "Karras et al. 2022" in page_of(folder)
    content = json.loads((folder / "dataset.json").read_text())
    small = {"size": 8, "channels": 1, "levels": 17}
    none = "figures of other data sets do not compare"
    for changes, has, lacks in (
        ({"name": "imagenet32-old"}, '<td data-head="bits/dim" class="number">3.69<', ">3.43<"),
        ({"name": "imagenet32-new"}, ">3.43<", ">3.69<"),
        ({"name": "photographs"}, none, "arXiv"),
        # Somebody's own images in a folder of that name.
        ({"name": "digits"}, none, ">2.59<"),
        ({"name": "digits", **small}, ">2.59<", "arXiv"),
    ):
        write(folder / "dataset.json", content | changes)
        page = page_of(folder)
        assert has in page
        assert lacks not in page
    # The run's own figure stands above them.
    assert re.search(r">3\.1235 ± 0\.0020<.*>2\.59<", page, re.DOTALL)


def test_our_own_figures_are_those_of_the_comparison():
    digits = DatasetDescription(
        version=1, name="digits", source="", size=8, channels=1, levels=17, classes=[], encoding="npy", splits={}
    )
    table = ROOT / "docs" / "lab" / "comparisons" / "digits" / "comparison.csv"
    known = run_page.known_figures(digits)
    own = {figure["model"]: figure for figure in known if figure["source"].endswith("lab/comparison.md")}
    with table.open(newline="") as file:
        for row in csv.DictReader(file):
            figure = own.pop(row["variant"], None)
            if figure is None:
                continue  # A choice of the default, no published formulation.
            assert figure["bits/dim"].startswith(f"{float(row['own_bound_bits_per_dim']):.4f} ± ")
            assert figure["likelihood"] == f"bound on [{float(row['t_min']):.3g}, {float(row['t_max']):.6g}], " + (
                f"{row['dequantisation']}; one seed, {row['steps']} steps"
            )
            assert row["seeds"] == "1"
    assert not own


def test_negative_bits_of_single_images_are_said_to_be_noise(evaluated):
    assert "2 draws of each, whose noise is part of who is easy or hard." in page_of(evaluated)
    values = torch.arange(20) / 10 - 0.25
    save_file({"elbo": values}, evaluated / "evaluation" / "nll_test.safetensors")
    assert "No image has less than zero: the 3 that seem to are noise, which --draws reduces." in page_of(evaluated)


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


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("nll_test", "{", ""),
        ("nll_test", "[]", "not an object"),
        ("nll_test", "[" * 100_000, ""),
        ("nll_test", {"elbo": {"bits_per_dim": 3.1}}, "elbo.error_draws: "),
        ("frechet_x", {"values": [[]]}, "values.0: "),
    ],
)
def test_a_damaged_result_is_named(folder, name, content, reason):
    path = folder / "evaluation" / f"{name}.json"
    path.write_text(content if isinstance(content, str) else json.dumps(json.loads(path.read_text()) | content))
    with pytest.raises(UserError, match=rf"{name}.json is damaged \({reason}.*\)\. Delete it, and make it again"):
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
    result.write(numbers, tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads(file.read_text())
    assert result.read(tmp_path / "again.json") == numbers


def test_a_damaged_sheet_or_configuration_is_named(folder):
    for file, reason in (("samples/step_00000200.png", "is no PNG"), ("config.yaml", "is not YAML")):
        (folder / file).write_text("a: [")
        with pytest.raises(UserError, match=f"{file} {reason}"):
            page_of(folder)


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_page_in_a_browser(folder, tmp_path):
    """Rendered, it is no wider than a narrow window, its pictures are shown, and it and its plots may be dark."""
    # The page itself admits no script; this one measures it.
    page = re.sub(r"<meta http-equiv[^>]*>", "", page_of(folder))
    measure = """<script>window.onload = () => { document.title = JSON.stringify({
        fits: document.documentElement.scrollWidth <= innerWidth, window: innerWidth,
        pictures: [...document.images].filter(i => i.naturalWidth > 0).length,
        plot: getComputedStyle(document.querySelector("img[src^='data:image/svg']")).filter,
        back: getComputedStyle(document.body).backgroundColor }) }</script>"""
    file = tmp_path / "page.html"
    file.write_text(page + measure)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    flags += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'user'}"]
    flags += ["--window-size=500,900", "--blink-settings=preferredColorScheme=0", "--dump-dom"]
    done = subprocess.run([CHROMIUM, *flags, file.as_uri()], capture_output=True, text=True, timeout=120)
    found = json.loads(re.search(r"<title>(.*?)</title>", done.stdout).group(1))
    dark = {"back": "rgb(20, 24, 29)", "plot": "invert(1) hue-rotate(180deg)"}
    assert found == {"fits": True, "window": 500, "pictures": 8, **dark}


def plot(name="a", values=(3.0, 2.0, 1.0), **settings):
    lines = [Line(name, list(enumerate(values, 1)), [0.1] * len(values)), Line("other", [(1, 2.0)])]
    return Plot(name, "step", "bits/dim", lines, name, partial(figures.steps_axis, **settings))


@pytest.mark.parametrize("name", ["<b>&\"'", "$\\frac$ #2563a8", "a\x01b\x1b"])
def test_any_name_is_text(name):
    root = ElementTree.fromstring(base64.b64decode(plot(name).source.partition(",")[2]))
    texts = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert printable(name) in texts


def test_a_plot_as_png_is_in_the_light_colours(tmp_path):
    plot().save(tmp_path / "a.png")
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    assert pixels.shape[:2] == (600, 960)
    assert (pixels == [int(COLOURS[0][i : i + 2], 16) for i in (1, 3, 5)]).all(-1).any()


def test_the_first_steps_do_not_take_all_the_height():
    high = plot(values=(1e6, *np.linspace(3, 2, 60))).figure().axes[0].get_ylim()[1]
    assert 3 <= high < 4
    assert plot(values=(0.0, 1.0), log=True).figure().axes[0].get_yscale() == "linear"
