"""Runs on one page: what differs, by how much, and with which error; what a run has said is text."""

import base64
import csv
import io
import json
import re

import pytest
import torch
from safetensors.torch import save_file

from fdtrain.commands.entry import main
from fdtrain.errors import UserError
from fdtrain.evaluation import compared, report, run_folder
from fdtrain.evaluation.compared import ComparedVariant
from fdtrain.evaluation.pictures import save_png

HOSTILE = "<script>alert('x')</script>|a"
SPLIT = {"dataset": "digits", "source": "", "split": "test", "fingerprint": "a", "images_in_split": 4, "levels": 17}
COMMON = {**SPLIT, "images": 4, "device": "cpu", "seconds": 1.0, "step": 2, "seed": 0}
NLL = {**COMMON, "kind": "nll", "dequantisation": "uniform", "dtype": "float32", "batch": 1}
NOISE = {
    **COMMON,
    "kind": "noise",
    "time_sampling": "iid",
    "batch": {"batches": 4, "variance": 0.04, "t_edges": [0, 0.2, 1], "by_time": [1e-6, 1e6]},
    "gradient": {"gradients": 2, "noise": 0.5, "norm": 1.0, "noise_scale": None},
    "distance": "FID",
    "features": {"name": "inception", "sha256": None, "dims": 4, "input": ""},
    "samplers": [
        {"solver": "ode", "grid": "two_ended", "points": [{"nfe": 10, "distance": 5.0}]},
        {"solver": "sde", "grid": "two_ended", "points": [{"nfe": 10, "distance": 4.0}]},
    ],
}


def make_run(folder, bits, lr=0.1, seconds=1.0, noise=None, **changes):
    (folder / "evaluation").mkdir(parents=True)
    (folder / "samples").mkdir()
    (folder / "config.yaml").write_text(f"name: {folder.name}\ntraining: {{lr: {lr}, steps: 2}}\n")
    lines = [
        {"step": step, "train/bits_per_dim": 5 - step, "train/step_seconds": seconds, "train/lr": lr} for step in (1, 2)
    ]
    lines.append({"step": 2, "test/bits_per_dim": 3.0, "test/standard_error": 0.1})
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    values = torch.tensor(bits)
    elbo = {
        "bits_per_dim": values.mean().item(),
        "error_draws": None,
        "error_images": 0.5,
        "evaluations": 1,
        "draws": 1,
    }
    (folder / "evaluation" / "nll_test.json").write_text(json.dumps({**NLL, "elbo": elbo, **changes}))
    save_file({"elbo": values}, folder / "evaluation" / "nll_test.safetensors")
    if noise is not None:
        (folder / "evaluation" / "noise.json").write_text(json.dumps({**NOISE, **noise}))
    save_png(torch.zeros(3, 8, 8, dtype=torch.uint8), folder / "samples" / "step_00000002.png")
    return folder


def page(*folders):
    variants = compared.of_runs([run_folder.read(folder) for folder in folders])
    return report.SideBySide("x", "", variants[0].name, variants).html()


def plots(text):
    """The drawings of a page."""
    found = re.findall(r"data:image/svg\+xml;base64,([^\"]+)", text)
    return [base64.b64decode(plot).decode() for plot in found]


def section(text, title):
    """Cells of a section's table by the head of their column, row by row."""
    found = re.search(rf"<h2 id=\"[^\"]+\">{re.escape(title)}</h2>(.*?)(?=<h2|</body>)", text, re.DOTALL)
    cells = [re.findall(r'<td data-head="([^"]*)"[^>]*>(.*?)</td>', row) for row in found.group(1).split("<tr>")]
    return [dict(row) for row in cells if row]


@pytest.fixture
def first(tmp_path):
    return make_run(tmp_path / "a", [1.0, 2.0, 3.0, 4.0])


def test_figures_with_their_errors_and_settings_that_differ(first, tmp_path):
    second = make_run(tmp_path / "b", [1.5, 2.5, 3.5, 4.7], lr=0.2, seconds=1800.0)
    text = page(first, second)
    bits = section(text, "Bits/dim")
    assert [row["own bound"] for row in bits] == ["2.5000 ± 0.5000", "3.0500 ± 0.5000"]
    assert [row["bound"] for row in bits] == ["closed interval"] * 2
    assert {row["images"] for row in bits} == {"all 4 images of digits/test"}
    # Of 0.5, 0.5, 0.5, 0.7: mean 0.55, standard deviation 0.1.
    (difference,) = section(text, "Difference to a")
    assert (difference["variant"], difference["own bound"]) == ("b", "+0.5500 ± 0.0500")
    assert [row["time of training steps"] for row in section(text, "Training")] == ["2 seconds", "1 hour"]
    assert [row["settings"] for row in section(text, "Settings")] == ["the reference", "training.lr: 0.2 (0.1)"]
    assert text.count("data:image/png;base64,") == 2
    # Held-out bits/dim, the batches' and the rate: a line for each run, whose names are in the legend.
    assert [len(re.findall(r"<text[^>]*>b</text>", plot)) for plot in plots(text)] == [1, 1, 1]
    assert "No real images to stand beside them" in text


def test_values_of_other_images_are_not_subtracted_and_bounds_are_named(first, tmp_path):
    text = page(first, make_run(tmp_path / "b", [1.0, 2.0, 3.0, 4.0], fingerprint="b", bound="[0.001, 1]"))
    assert "Difference to a" not in text
    assert [row["bound"] for row in section(text, "Bits/dim")] == ["closed interval", "[0.001, 1]"]
    assert [row["closed bound"] for row in section(text, "Bits/dim")] == ["2.5000 ± 0.5000", "-"]


def test_runs_of_one_name_are_told_apart_by_their_paths(first, tmp_path):
    runs = [run_folder.read(first), run_folder.read(make_run(tmp_path / "other" / "a", [1.0] * 4))]
    assert [variant.name for variant in compared.of_runs(runs)] == ["a", "other/a"]
    with pytest.raises(UserError, match="named twice"):
        page(first, first)


def test_the_command(first, tmp_path, capsys):
    second = make_run(tmp_path / "b", [1.0] * 4)
    assert main(["evaluate", "report", "--compare", str(first), str(second)]) == 0
    assert capsys.readouterr().out == f"{first / 'comparison.html'}\n"
    assert main(["evaluate", "report", str(first), str(second), "--compare", "--out", str(tmp_path / "c.html")]) == 0
    assert (tmp_path / "c.html").read_text() == (first / "comparison.html").read_text()
    assert main(["evaluate", "report", str(first), str(second)]) == 2
    assert "one page is of one run" in capsys.readouterr().err
    assert main(["evaluate", "report", "--compare", str(first)]) == 2
    assert "--compare needs two runs or more" in capsys.readouterr().err


def test_variants_over_seeds_and_the_three_files(tmp_path):
    """Two seeds of a reference, one of a variant whose other seed has failed, and one that has failed altogether."""
    folders = [make_run(tmp_path / name, bits, noise={}) for name, bits in (("a0", [1.0] * 4), ("a1", [2.0] * 4))]
    sampler = {"solver": "ddim", "grid": "flow", "points": [{"nfe": 10, "distance": 9.0}]}
    folders.append(make_run(tmp_path / "v1", [1.75] * 4, noise={"own_sampler": sampler}))
    runs = [run_folder.read(folder) for folder in folders]
    bound = {"interval": (0.0, 1.0), "decoder": "none"}
    variants = [
        ComparedVariant("a", {0: runs[0], 1: runs[1]}, {}, {}, bound),
        ComparedVariant("v", {1: runs[2]}, {"diffusion.scale": None}, {0: HOSTILE}, bound),
        ComparedVariant("failed", {}, {}, {0: "x", 1: "x"}, bound),
    ]
    found = report.SideBySide("c", "about", "a", variants, 2)
    a, v, failed = found.rows
    assert a["own_bound"]["bits_per_dim"] == {"mean": 1.5, "error": 0.5, "values": [1.0, 2.0]}
    assert (a["own_bound"]["difference"], a["own_bound"]["error_images"]) == (None, None)
    assert (v["own_bound"]["bits_per_dim"]["error"], v["own_bound"]["error_images"]) == (None, 0.5)
    assert (v["own_bound"]["difference"]["mean"], v["own_bound"]["difference"]["seeds"]) == (-0.25, [1])
    assert (failed["seeds"], len(failed["failures"]), "own_bound" in failed) == ([], 2, False)
    text, table, page = (path.read_text() for path in report.write(found, tmp_path))
    assert "| a | closed interval | uniform | 1.5000 ± 0.5000 |" in text
    assert "| 1 of 2 |" in text
    assert "&lt;script>alert('x')&lt;/script>\\|a" in text
    assert "| v | diffusion.scale: null (-) |" in text
    assert "| v | ddim, flow | 9.000 |" in text
    assert [text.count(f"| v | {row} |") for row in ("ode, two_ended | 5.000", "sde, two_ended | 4.000")] == [1, 2]
    assert "](quality.png)\n\nFID against evaluations; bands: standard error over seeds.\n" in text
    columns = list(csv.DictReader(io.StringIO(table)))
    assert [row["variant"] for row in columns] == ["a", "v", "failed"]
    assert (columns[0]["own_bound_bits_per_dim"], columns[2]["own_bound_bits_per_dim"]) == ("1.5", "")
    assert (columns[0]["frechet_10"], columns[0]["batch_variance"], columns[2]["failed"]) == ("4.0", "0.04", "2")
    assert (columns[1]["own_sampler_frechet_10"], columns[1]["own_sampler"]) == ("9.0", "ddim, flow")
    assert (columns[1]["sampler"], columns[2]["sampler"]) == ("sde, two_ended", "")
    assert "<script>" not in page
    assert "alert(&#39;x&#39;)" in page
    pictures = {f"{name}.png" for name in ("held_out", "training", "lr", "quality", "variance")}
    assert {path.name for path in tmp_path.glob("*.png")} == pictures
    assert len(plots(page)) == 5


def test_a_comparison_of_which_every_run_has_failed(tmp_path):
    variants = [ComparedVariant("a", {}, {}, {0: HOSTILE})]
    found = report.SideBySide("c", "about", "a", variants)
    text, _, page = (path.read_text() for path in report.write(found, tmp_path))
    assert "## Failed runs" in text
    assert plots(page) == []


def test_a_paired_difference_is_over_common_seeds_and_has_both_errors():
    """Seeds differ by 1 and 3 on every image, and images by 0.5 around that; the images' own spread of 100 cancels."""
    images = 100 * torch.arange(4.0)
    own = {0: images + 1 + torch.tensor([0.5, -0.5, 0.5, -0.5]), 1: images + 3, 2: images}
    found = compared.difference(own, {0: images, 1: images, 5: images})
    assert (found["mean"], found["images"], found["seeds"]) == (2.0, 4, [0, 1])
    assert found["error_images"] == pytest.approx(torch.tensor([0.25, -0.25, 0.25, -0.25]).std().item() / 2)
    assert found["error_seeds"] == pytest.approx(1.0)
    assert compared.difference(own, {7: images}) is None
    assert compared.difference({0: images}, {0: images})["error_seeds"] is None


def test_the_bound_of_the_odes_images_is_that_of_the_first(tmp_path):
    """Bounds of 0 to 3: those of the first two have the mean 0.5; the bound computed with the ODE does not count."""
    folder = make_run(tmp_path / "a", [0.0, 1.0, 2.0, 3.0])
    elbo = {"bits_per_dim": 7.0, "error_draws": None, "error_images": None, "evaluations": 1, "draws": 2}
    ode = {**elbo, "dequantisations": 1, "tolerance": 0.1, "trace": "exact", "probes": None, "nfe": 9}
    ode_file = folder / "evaluation" / "nll_test_first2.json"
    ode_file.write_text(json.dumps({**NLL, "images": 2, "elbo": elbo, "ode": ode}))
    save_file({"elbo": torch.full((2,), 7.0), "ode": torch.full((2,), 7.0)}, ode_file.with_suffix(".safetensors"))
    found = compared.bits_of(run_folder.read(folder))
    means = {kind: bits.mean for kind, bits in found.items()}
    assert means == {"elbo": 1.5, "elbo_closed": 1.5, "ode": 7.0, "elbo_of_ode_images": 0.5}


def test_distances_of_an_earlier_version_by_one_sampler(tmp_path):
    sampler = NOISE["samplers"][0]
    content = {key: value for key, value in NOISE.items() if key != "samplers"} | sampler
    folder = make_run(tmp_path / "a", [1.0] * 4)
    (folder / "evaluation" / "noise.json").write_text(json.dumps(content))
    row = compared.rows([ComparedVariant("a", {0: run_folder.read(folder)}, {})], "a")[0]
    assert (row["sampler"], row["points"][0]["distance"]["mean"]) == ("ode, two_ended", 5.0)
