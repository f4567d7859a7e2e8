import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fdtrain.data import braces
from fdtrain.data.braces import expand, max_names
from fdtrain.errors import UserError


def test_expand():
    assert expand("x", ["a-{08..11}.tar", "{x,y}/b.tar"]) == [
        *(f"a-{i:02}.tar" for i in range(8, 12)),
        "x/b.tar",
        "y/b.tar",
    ]
    assert expand("x", ["{a..c}{3..1}"]) == [f"{a}{i}" for a in "abc" for i in (3, 2, 1)]


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("{a,b}" * 40, "too many names"),
        ("{0..99999999999}", "too many names"),
        ("{a..z}" * 10, "too many names"),
        ("{0.." + "9" * 5000 + "}", "Exceeds the limit"),
        ("{" * 50_000, "braces within braces"),
        ("{a,{b,c}}", "braces within braces"),
        ("train-{000..099.tar", "has a '{' without its other"),
        ("train-000..099}.tar", "has a '}' without its other"),
    ],
    ids=lambda text: text[:20],
)
def test_refused(pattern, problem):
    with pytest.raises(UserError, match=problem):
        expand("x", [pattern])


def test_the_bound_is_of_all_lines_together(monkeypatch):
    line = "{0..9}-" + "x" * 90
    monkeypatch.setattr(braces, "MAX_CHARACTERS", 10 * 10 * len(line))
    assert len(expand("x", [line] * 10)) == 100
    with pytest.raises(UserError, match="too many names"):
        expand("x", [line] * 11)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab,.0123{}\\-", max_size=24))
def test_no_pattern_stands_for_more_names_than_counted(pattern):
    try:
        if max_names(pattern) > 10_000:
            return
        names = expand("x", [pattern])
    except (UserError, ValueError):
        return
    assert len(names) <= max_names(pattern)
