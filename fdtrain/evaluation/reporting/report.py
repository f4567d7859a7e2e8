"""One HTML page of a run: what was trained, on what, for how long, and what it is worth (docs/evaluation.md).

Self-contained: pictures are embedded, nothing is fetched, no script runs. Whatever comes from a file is escaped.
"""

import base64
import html
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fdtrain.credentials import masked
from fdtrain.evaluation.reporting.published import FIGURES
from fdtrain.evaluation.reporting.run_folder import RunFolder, number

METHODS = {
    "elbo": "ELBO",
    "elbo_importance": "ELBO, importance-weighted",
    "ode": "ODE",
    "ode_importance": "ODE, importance-weighted",
}
CURVES = {
    "ode": "Deterministic solvers: RMS distance to a fine solution of the ODE from the same noise.",
    "integrand": "The bound's integral by time. Its mean over the time quantile, and the standard normal's part, make "
    "the bound.",
    "variance": "Variance of one image's estimate by time, and what strata save of it.",
}

STYLE = """
:root { color-scheme: light dark; --text: #1c2127; --soft: #59636e; --line: #d5dae0; --back: #ffffff; --card: #f5f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e8ec; --soft: #9aa5b1; --line: #39424c; --back: #14181d; --card: #1d232a; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; color: var(--text); background: var(--back);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0.5rem 0 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 0.6rem; padding-bottom: 0.2rem; border-bottom: 1px solid var(--line); }
p { margin: 0.5rem 0; } .soft { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 0.3rem 1rem 0.3rem 0; border-bottom: 1px solid var(--line); }
td { overflow-wrap: break-word; } td.number { white-space: nowrap; font-weight: 600; }
@media (max-width: 40rem) {
  thead { display: none; } table, tbody, tr, td { display: block; } td { border: none; padding: 0.05rem 0; }
  tr { border-bottom: 1px solid var(--line); padding: 0.5rem 0; } td.number { white-space: normal; }
  td::before { content: attr(data-head) ": "; color: var(--soft); font-weight: 400; }
}
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: 0.25rem 1rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 0.8rem 0; max-width: 40rem; } figcaption { color: var(--soft); font-size: 0.9rem; margin-top: 0.2rem; }
img { display: block; max-width: 100%; height: auto; border-radius: 6px; background: #ffffff; }
img.pixels { image-rendering: pixelated; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 0 1.2rem; }
.missing { background: var(--card); border: 1px dashed var(--line); border-radius: 6px; padding: 0.6rem 0.8rem; }
pre { background: var(--card); padding: 0.8rem; border-radius: 6px; overflow-x: auto; font-size: 0.82rem; }
code { overflow-wrap: anywhere; font-size: 0.9em; } summary { cursor: pointer; }
"""


def page(run: RunFolder, training: Path | None) -> str:
    """The page of a run; ``training`` is the picture of its training curve, where there is one."""
    name = run.path.resolve().name
    parts = [
        _summary(run),
        _bits(run),
        _frechet(run),
        _published(run),
        _samples(run),
        _curves(run),
        _training(training),
        _configuration(run),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{_e(name)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{_e(name)}</h1>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _summary(run: RunFolder) -> str:
    dataset, environment = run.dataset, run.environment
    splits = dataset.get("splits") if isinstance(dataset.get("splits"), dict) else {}
    counts = [f"{split}: {sum(_images(shards)):,} images" for split, shards in splits.items()]
    size = f"{_t(dataset.get('size'))}x{_t(dataset.get('size'))}, {_t(dataset.get('channels'))} channels, "
    seen, hours = run.series("train/images_seen"), run.hours
    packages = ("fdtrain", "torch", "deepspeed", "python")
    facts = {
        "Data set": f"{_t(dataset.get('name'))} ({_t(dataset.get('source'))})" if dataset else None,
        "Images": f"{size}{_t(dataset.get('levels'))} levels; {', '.join(counts)}" if dataset else None,
        "Trained": f"{seen[-1][0]:,} steps, {seen[-1][1]:,} images seen" if seen else None,
        "Time": f"{_hours(hours)} of training steps; evaluation, samples and checkpoints come on top"
        if hours
        else None,
        "Hardware": f"{_t(environment.get('processes'))} x {_t(environment.get('device'))}" if environment else None,
        "Versions": ", ".join(f"{p} {_t(environment.get(p))}" for p in packages) if environment else None,
        "Commit": _t(environment.get("commit")) if environment else None,
    }
    rows = "".join(
        f"<dt>{key}</dt><dd>{_e(value) if value else 'not recorded in the run'}</dd>" for key, value in facts.items()
    )
    return f"<h2>Run</h2>\n<dl>{rows}</dl>"


def _images(shards: Any) -> Iterable[int]:
    for shard in shards if isinstance(shards, list) else []:
        if isinstance(shard, dict) and number(shard.get("images")):
            yield int(shard["images"])


def _bits(run: RunFolder) -> str:
    rows = []
    for result in run.of_kind("nll").values():
        for key, title in METHODS.items():
            if isinstance(found := result.get(key), dict):
                rows.append(
                    [title, _n(found.get("bits_per_dim"), 4), _errors(found), _how(result, found), _about(result)]
                )
    if not rows:
        return "<h2>Bits/dim</h2>\n" + _missing(run, "Not evaluated yet.", "nll {run} --data DATA --ode")
    note = "Of the discrete images, on the closed time interval; upper bounds of the negative log-likelihood."
    head = ["method", "bits/dim", "standard error over draws / images", "how", "on"]
    return f"<h2>Bits/dim</h2>\n<p>{note}</p>\n{_table(head, rows, numbers={1})}"


def _errors(found: dict) -> str:
    return " / ".join(_n(found.get(key), 4) if found.get(key) is not None else "-" for key in ERRORS)


ERRORS = ("error_draws", "error_images")


def _how(result: dict, found: dict) -> str:
    parts = [f"{_t(result.get('dequantisation'))} dequantisation", _t(result.get("dtype"))]
    if number(found.get("draws")):
        parts.append(f"{found['draws']} draws per image" + (", antithetic" if found.get("antithetic") is True else ""))
    if number(found.get("dequantisations")) and found["dequantisations"] > 1:
        parts.append(f"K = {found['dequantisations']}")
    if "nfe" in found:
        parts.append(
            f"tolerance {_t(found.get('tolerance'))}, NFE {_n(found['nfe'], 0)}, {_t(found.get('trace'))} trace"
        )
    return "; ".join(parts)


def _about(result: dict) -> str:
    """Which images, and which weights."""
    count, whole = result.get("images"), result.get("images_in_split")
    of = f"all {_t(count)}" if count == whole else f"the first {_t(count)} of {_t(whole)}"
    return f"{of} images of {_t(result.get('dataset'))}/{_t(result.get('split'))}; step {_t(result.get('step'))}"


def _frechet(run: RunFolder) -> str:
    title = "<h2>Distance of samples to data</h2>\n"
    rows = []
    for result in run.of_kind("frechet").values():
        features = result.get("features") if isinstance(result.get("features"), dict) else {}
        reference = result.get("reference") if isinstance(result.get("reference"), dict) else {}
        values = result.get("values") if isinstance(result.get("values"), list) else []
        spread = f" \u00b1 {_n(result['spread'], 3)}" if number(result.get("spread")) else ""
        # Another network's classes give another score than the one known by Inception's name.
        labels = OTHERS | {"inception_score": "Inception Score" if result.get("name") == "FID" else "class score"}
        others = [f"{label} {_n(result[key], 4)}" for key, label in labels.items() if number(result.get(key))]
        how = "unfinished: " if result.get("unfinished") is True else ""
        how += (
            f"{_t(result.get('images'))} images in each of {max(1, len(values))} sets, {_t(result.get('solver'))} on "
            f"{_t(result.get('grid'))}, NFE {_t(result.get('nfe'))}, guidance {_t(result.get('guidance'))}; "
            f"step {_t(result.get('step'))}"
        )
        defined = (
            f"features {_t(features.get('name'))} ({_t(features.get('dims'))} dimensions, sha256 "
            f"{_t(features.get('sha256'))[:12]}); reference {_t(reference.get('dataset'))}/"
            f"{_t(reference.get('split'))}, {_t(reference.get('images'))} images"
        )
        rows.append([_t(result.get("name")), _n(result.get("value"), 3) + spread, "; ".join(others), how, defined])
    if not rows:
        return title + _missing(run, "Not evaluated yet.", "fid {run} --data DATA")
    head = ["what", "value \u00b1 spread of sets", "others", "samples", "definition"]
    return title + _table(head, rows, numbers={1})


OTHERS = {"kid": "KID", "precision": "precision", "recall": "recall"}


def _published(run: RunFolder) -> str:
    name = run.dataset.get("name")
    figures = FIGURES.get(name, []) if isinstance(name, str) else []
    title = "<h2>Published figures on this data set</h2>\n"
    if not figures:
        return title + f"<p>None in our table is of {_e(_t(name))}; figures of other data sets do not compare.</p>"
    rows = [[f.model, f.bits_per_dim or "-", f.fid or "-", f.how, f.source] for f in figures]
    note = (
        "Of whole test sets unless a paper says otherwise; bounds and dequantisations differ, as the table says. "
        "The FIDs are Inception's, by each paper's own samples and statistics."
    )
    return f"{title}<p>{note}</p>\n" + _table(
        ["model", "bits/dim", "FID", "likelihood", "source"], rows, numbers={1, 2}
    )


def _samples(run: RunFolder) -> str:
    title, folder = "<h2>Samples</h2>\n", run.path / "samples"
    sheets = sorted(p for p in folder.glob("step_*.png") if not p.stem.endswith("_path"))
    final = folder / "final.png"
    sheet = final if final.is_file() else sheets[-1] if sheets else None
    if sheet is None:
        command = f"python tools/sample.py {_quoted(run.path)} --out {_quoted(final)}"
        return title + _missing_command("No sheet of samples.", command)
    figures = _figure(sheet, f"samples/{sheet.name}, from the averaged weights.", pixels=True)
    paths = sorted(folder.glob("step_*_path.png"))
    if paths:
        caption = f"samples/{paths[-1].name}: predicted images on the way from noise to image."
        figures += _figure(paths[-1], caption, pixels=True)
    return f'{title}<div class="figures">{figures}</div>'


def _curves(run: RunFolder) -> str:
    title = "<h2>Curves</h2>\n"
    figures = []
    for path, result in run.of_kind("curve").items():
        about = f"{_t(result.get('images'))} images, {_t(result.get('split'))} split, step {_t(result.get('step'))}."
        quality = f"{_t(result.get('distance'))} of samples to the data, against evaluations of the network."
        for name, caption in {"quality": quality, **CURVES}.items():
            picture = path.with_name(f"{path.stem}_{name}.png")
            if picture.is_file():
                figures.append(_figure(picture, f"{caption} {about}"))
    if not figures:
        return title + _missing(run, "Not drawn yet.", "curve {run} --data DATA")
    return f'{title}<div class="figures">{"".join(figures)}</div>'


def _training(picture: Path | None) -> str:
    title = "<h2>Training</h2>\n"
    if picture is None:
        return title + '<p class="missing">No metrics.jsonl with a loss in this run: it has not logged a step.</p>'
    return title + _figure(picture, "Bits/dim of training batches, and of held-out images by the averaged weights.")


def _configuration(run: RunFolder) -> str:
    return (
        f"<h2>Configuration</h2>\n<details><summary>config.yaml</summary><pre>{_e(masked(run.config))}</pre></details>"
    )


def _figure(path: Path, caption: str, pixels: bool = False) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    kind = ' class="pixels"' if pixels else ""
    return (
        f'<figure><img{kind} src="data:image/png;base64,{data}" alt="{_e(caption)}">'
        f"<figcaption>{_e(caption)}</figcaption></figure>"
    )


def _table(head: list[str], rows: list[list[str]], numbers: set[int]) -> str:
    cells = "".join(f"<th>{_e(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td data-head="{_e(head[i])}"{NUMBER if i in numbers else ""}>{_e(cell)}</td>'
            for i, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


NUMBER = ' class="number"'


def _missing(run: RunFolder, what: str, command: str) -> str:
    return _missing_command(what, "python tools/evaluate.py " + command.format(run=_quoted(run.path)))


def _missing_command(what: str, command: str) -> str:
    return f'<p class="missing">{_e(what)} To make it: <code>{_e(command)}</code></p>'


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _e(text: str) -> str:
    return html.escape(text)


def _t(value: Any) -> str:
    """A value of a file as text, short enough for a cell."""
    if value is None:
        return "unknown"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)[:200]


def _n(value: Any, digits: int) -> str:
    return f"{value:.{digits}f}" if number(value) else _t(value)


def _hours(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"
