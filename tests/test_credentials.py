"""No credential of a URL is printed or stored, and a run that lost it takes it from the environment again."""

import json
import os

import pytest
from flaky import Flaky

from fdtrain import credentials
from fdtrain.config import Config, dump_config, load_config
from fdtrain.credentials import expand_references, masked
from fdtrain.data.location import locate
from fdtrain.errors import UserError, exit_code

SECRET = "hunter2TOPsecret"
HARMLESS = ["https://host:80/a@b/c", "s3://bucket/set/train-{{000..099}}.tar", "http://[::1]:80/a@b", "data/digits"]
HARMLESS += ["/folder/a@b?c", "https://${{USER}}:${{PASSWORD}}@host/x?${{SIGNATURE}}", "https://host/x?sig=${{X}}"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:{}@host/x", "https://***@host/x"),
        ("https://{}:x-oauth-basic@host", "https://***@host"),
        ("https://host/x-{{0..9}}.tar?X-Amz-Signature={}", "https://host/x-{{0..9}}.tar?***"),
        ("https://host/x#{}", "https://host/x#***"),
        ("--set data.path=HTTPS://me:{}@host/x", "--set data.path=HTTPS://***@host/x"),
        ("https://me:a/b c@{}@host/x", "https://***@host/x"),
        ("'https://host/x?sig={}' is wrong", "'https://host/x?***' is wrong"),
        ("https://me:{0}@one/x and https://me:{0}@two/y?{0}", "https://***@one/x and https://***@two/y?***"),
        ("simplecache::https://me:{}@host/x", "simplecache::https://***@host/x"),
        ("https://proxy/https://me:{}@host/x", "https://proxy/https://***@host/x"),
        *((text, text) for text in HARMLESS),
    ],
)
def test_masked(text, shown):
    assert masked(text.format(SECRET)) == shown.format()
    assert str(UserError(text.format(SECRET))) == shown.format()


def test_an_expanded_reference_is_shown_as_such(monkeypatch):
    monkeypatch.setattr(credentials, "_expanded", {})
    monkeypatch.setenv("TOKEN", SECRET)
    assert expand_references("https://host/${TOKEN}/x") == f"https://host/{SECRET}/x"
    assert masked(f"cannot read https://host/{SECRET}/x") == "cannot read https://host/${TOKEN}/x"
    with pytest.raises(UserError, match=r"names \$\{NOWHERE\}, which the environment does not have"):
        locate("https://host/${NOWHERE}")


def test_a_trace_is_masked_too(capsys):
    def bug() -> None:
        raise RuntimeError(f"cannot open https://me:{SECRET}@host/x?{SECRET}")

    assert exit_code(bug) == 1
    error = capsys.readouterr().err
    assert "RuntimeError: cannot open https://***@host/x?***" in error
    assert SECRET not in error


def test_the_stored_configuration_keeps_references_and_says_where_credentials_were(tmp_path):
    paths = f"https://me:{SECRET}@host/x", "https://host/y?${SIGNATURE}"
    mixture = [{"path": path, "weight": 1} for path in paths]
    config = Config.model_validate({"name": "x", "data": {"mixture": mixture}, "training": {"steps": 1}})
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml").data.paths == ["https://***@host/x", paths[1]]
    with pytest.raises(UserError, match=r"\*\*\* stands where the credentials of https://\*\*\*@host/x were removed"):
        locate("https://***@host/x")


@pytest.mark.parametrize(
    "path",
    [
        f"https://me:{SECRET}@host/{{0..3.tar",
        f"nonsense://me:{SECRET}@host/x?{SECRET}",
        f"[https://me:{SECRET}@host/{'x' * 300}]",
    ],
)
def test_a_rejected_url_is_not_printed_whole(launch, command, path):
    settings = f"data.path={path}", "data.fetch_timeout_s=0.1"
    said = command("train", "--config", launch.config, "--set", *settings, rc=2)
    assert SECRET not in said
    assert len([line for line in said.splitlines() if line.startswith("fdtrain: error")]) == 1


def test_no_file_and_no_output_of_a_run_holds_a_secret(launch, digits, monkeypatch, command):
    monkeypatch.setattr(credentials, "_expanded", {})
    with Flaky(digits).serve() as url:
        secret = f"{url.replace('://', f'://me:{SECRET}@')}/?sig={SECRET}"
        settings = "training.steps=4", "checkpoint.every=2", "monitor.sample_every=4", "monitor.sample_steps=2"
        first = launch(f"data.path={secret}", *settings, processes=0)
        monkeypatch.setenv("FDTRAIN_TEST_URL", secret)
        # The stored configuration has lost it.
        lost = command("train", "--config", launch.run_folder() / "config.yaml", "--resume", "auto", rc=2)
        assert "were removed when it was stored" in lost
        again = launch("data.path=${FDTRAIN_TEST_URL}", *settings[1:], processes=0, resume=True)
        report = command("evaluate", "report", launch.run_folder())
    assert SECRET not in first.stdout + first.stderr + lost + again.stdout + again.stderr + report
    files = [file for file in launch.run_folder().rglob("*") if file.is_file()]
    assert not [file for file in files if SECRET in str(file) or SECRET.encode() in file.read_bytes()]
    assert sorted(launch.losses()) == [1, 2, 3, 4, 5, 6]
    assert json.loads((launch.run_folder() / "environment.json").read_text())["command"]
    for file in (launch.run_folder() / "config.yaml", launch.checkpoint(6) / "config.yaml"):
        assert load_config(file).data.path == "${FDTRAIN_TEST_URL}"
    assert "***@127.0.0.1" in (launch.checkpoint(4) / "config.yaml").read_text()
    assert os.path.getsize(launch.run_folder() / "report.html") > 1000
