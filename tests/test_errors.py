import logging

import pytest

from fdtrain.errors import exit_code


@pytest.fixture
def restored():
    """Leaves the messages of the library as they were."""
    logger = logging.getLogger("fdtrain")
    handlers, level = logger.handlers, logger.level
    yield
    logger.handlers, logger.level = handlers, level


def test_names_in_messages_turn_no_line_round(capsys, restored):
    """A right-to-left override, a cursor that moves; the lines of one message stay."""
    name = "photo\u202egpj.exe\x1b[2K\r"
    assert exit_code(lambda: logging.getLogger("fdtrain.data").warning("%s\nis damaged", name)) == 0
    assert capsys.readouterr().err == "fdtrain: photo\ufffdgpj.exe\ufffd[2K\ufffd\nis damaged\n"


@pytest.mark.parametrize(
    ("rank", "shown"),
    [("0", "fdtrain: 3 of 4 images\nfdtrain: a part is damaged\n"), ("2", "fdtrain: (rank 2) a part is damaged\n")],
)
def test_an_entry_point_shows_the_messages_of_the_library_once(capsys, monkeypatch, restored, rank, shown):
    monkeypatch.setenv("RANK", rank)
    logger = logging.getLogger("fdtrain.evaluation.stored_rows")

    def main():
        logger.debug("nobody reads this")
        logger.info("%d of %d images", 3, 4)
        logger.warning("a part is damaged")

    for _ in range(2):
        assert exit_code(main) == 0
        assert capsys.readouterr() == ("", shown)
