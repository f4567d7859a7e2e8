"""Runs on one page: what differs, by how much, and with which error."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from fdtrain.commands.entry import main
from fdtrain.errors import UserError
from fdtrain.evaluation import run_folder, side_by_side
from fdtrain.evaluation.samples import save_png

NLL = {
    "kind": "nll",
    "images": 4,
    "images_in_split": 4,
    "device": "cpu",
    "seconds": 1.0,
    "dataset": "digits",
    "source": "",
    "split": "test",
    "fingerprint": "a",
    "levels": 17,
    "dequantisation": "uniform",
    "dtype": "float32",
    "seed": 0,
    "batch": 1,
}


def make_run(folder, bits, lr=0.1, seconds=1.0, **changes):
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
    save_png(torch.zeros(3, 8, 8, dtype=torch.uint8), folder / "samples" / "step_00000002.png")
    return folder


def page(*folders):
    return side_by_side.page([run_folder.read(folder) for folder in folders], None)


def rows(text):
    """Cells of the tables by their first."""
    found = (re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL))
    return {cells[0]: cells[1:] for cells in found if cells}


@pytest.fixture
def first(tmp_path):
    return make_run(tmp_path / "a", [1.0, 2.0, 3.0, 4.0])


def test_figures_with_their_errors_and_settings_that_differ(first, tmp_path):
    second = make_run(tmp_path / "b", [1.5, 2.5, 3.5, 4.7], lr=0.2, seconds=1800.0)
    text = page(first, second)
    cells = rows(text)
    assert cells["bits/dim, ELBO, closed interval, all 4 images of digits/test"] == [
        "2.5000 ± 0.5000",
        "3.0500 ± 0.5000",
    ]
    # Of 0.5, 0.5, 0.5, 0.7: mean 0.55, standard deviation 0.1.
    assert cells["difference of ELBO to the first run, image by image"] == ["the reference", "+0.5500 ± 0.0500"]
    assert cells["time of training steps"] == ["2 seconds", "1 hour"]
    assert cells["training.lr"] == ["0.1", "0.2"]
    assert not {"name", "training.steps", "images seen"} & set(cells)
    assert text.count("data:image/png;base64,") == 2
    # Held-out bits/dim, the batches' and the rate: a line for each run, whose names are in the legend.
    assert text.count("<svg") == 3
    assert len(re.findall(r"<text[^>]*>b</text>", text)) == 3
    assert "No real images to stand beside them" in text


def test_a_run_has_the_same_colour_in_every_plot(first, tmp_path):
    """Also where another run has not logged what is drawn."""
    second = make_run(tmp_path / "b", [1.0] * 4)
    log = first / "metrics.jsonl"
    lines = [line for line in log.read_text().splitlines() if "test/" not in line]
    log.write_text("\n".join(lines).replace("train/lr", "train/other"))
    held_out, batches, rate = re.findall(r"<svg.*?</svg>", page(first, second), re.DOTALL)
    for plot in (held_out, rate):
        assert "--plot-1" in plot
        assert "--plot-0" not in plot
    assert "--plot-0" in batches
    assert "--plot-1" in batches


@pytest.mark.parametrize("changes", [{"fingerprint": "b"}, {"bound": "[0.001, 1]"}])
def test_values_of_other_images_or_of_another_bound_are_not_subtracted(first, tmp_path, changes):
    cells = rows(page(first, make_run(tmp_path / "b", [1.0, 2.0, 3.0, 4.0], **changes)))
    assert "difference of ELBO to the first run, image by image" not in cells
    if "bound" in changes:
        assert cells["bits/dim, ELBO, [0.001, 1], all 4 images of digits/test"] == ["-", "2.5000 ± 0.5000"]


def test_runs_of_one_name_are_told_apart_by_their_paths(first, tmp_path):
    names = side_by_side.named([run_folder.read(first), run_folder.read(make_run(tmp_path / "other" / "a", [1.0] * 4))])
    assert list(names) == ["a", "other/a"]


def test_a_run_named_twice_is_refused(first):
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
