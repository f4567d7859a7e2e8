"""YAML that a configuration may not have: refused by its line, in a short message, before it costs anything."""

import itertools

import pytest

from fdtrain.config import EmaConfig, load_config
from fdtrain.errors import UserError
from fdtrain.strict_yaml import parse

LEVELS = "abcdefghijkl"


def bomb(first: str, repeated: str) -> str:
    """Twelve anchors, each of which names the one before ten times."""
    lines = [f"a: &a {first}"]
    for before, name in itertools.pairwise(LEVELS):
        lines.append(f"{name}: &{name} " + repeated.format(", ".join([f"*{before}"] * 10)))
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: key 'a' was given in line 1 already"),
        ("s:\n  x: 1\n  y: 1\n  'x': 2", "line 4: key 'x' was given in line 2 already"),
        ("s: {x: 1, x: 1}", "line 1: key 'x' was given in line 1 already"),
        (bomb("[x, x]", "[{}]"), "line 5: more than 20,000 values, each counted as often as aliases repeat it"),
        (bomb("{x: 1}", "{{<<: [{}]}}"), "more than 20,000 values"),
        (f"a: &a {'x' * 500_000}\nb: [{'*a, ' * 1000}]", "line 2: more than 20,000 values"),
        ("&a [*a]", "line 1: more than 20,000 values"),
        ("[" * 33 + "]" * 33, "line 1: nested deeper than 32 levels"),
        ("[" * 100_000, "nested deeper than 32 levels"),
        ("a: " + "9" * 5000, "line 1: '999"),
        ("a: !!int x", "line 1: 'x' is no int"),
        ("a: !!timestamp 2026-13-45", "line 1: values of type tag:yaml.org,2002:timestamp are not admitted"),
        ("a: !!python/object/apply:os.system ['true']", "are not admitted"),
        ("a: 1\n? [x]\n: 2", "line 2: a key must be a plain text"),
        ('a: "\\0"', "line 1: a text holds a NUL character"),
        ("a: 1\nb\0: 2", "line 2: character U+0000 is not admitted"),
        ("a: *b", "line 1: found undefined alias 'b'"),
        ("x" * (1 << 20) + "y", "longer than 1 MiB"),
    ],
    ids=lambda text: ascii(text)[:30],
)
def test_refused(text, problem):
    with pytest.raises(UserError) as error:
        parse(text)
    message = str(error.value)
    assert problem in message
    assert "\n" not in message
    assert len(message) < 250


def test_what_aliases_are_for_stays():
    text = "base: &b {x: 1, y: 2}\none: {<<: *b, x: 3}\ntwo: {<<: *b}\nlist: [*b, *b]"
    assert parse(text)["one"] == {"x": 3, "y": 2}
    assert parse(text)["list"] == [{"x": 1, "y": 2}] * 2


def test_what_is_read_as_it_is_meant():
    texts = ["2026-11-24", "2026-13-45", "no", "on", "010", "08", "1:30", "1:30.5", "0x1f"]
    assert parse("\n".join(f"- {text}" for text in texts)) == texts
    plain = "[true, -12, +0, 1_000, 0.5, -1.5e+3, .5, ~, null, .inf]"
    assert parse(plain) == [True, -12, 0, 1000, 0.5, -1500.0, 0.5, None, None, float("inf")]


def test_an_override_changes_its_own_section_alone(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("name: x\ndata: {path: d}\ntraining: {steps: 1}\nema: &e {}\ncheckpoint: *e\nmonitor: *e\n")
    config = load_config(file, ["checkpoint.every=7"])
    assert (config.checkpoint.every, config.ema) == (7, EmaConfig())
