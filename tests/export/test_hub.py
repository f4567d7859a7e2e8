"""Uploads of exports: to a hub on loopback, or to none."""

import base64
import json
import os
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants
from models import DIGITS, filled, saved

from fdtrain.errors import UserError
from fdtrain.export import hub
from fdtrain.export.write import export

TOKEN = "hf_aTokenThatNobodyMaySee"


@pytest.fixture
def folder(tmp_path):
    export(saved(filled(DIGITS), tmp_path / "run"), tmp_path / "out")
    return tmp_path / "out"


@contextmanager
def hub_of(received: dict):
    """As much of the hub's interface as an upload needs; ``received`` gets the files of its commit."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            received.setdefault("tokens", set()).add(self.headers["Authorization"])
            if self.path == "/api/repos/create":
                received["created"] = json.loads(body)
                answer = {"url": f"http://{self.headers['Host']}/lab/digits"}
            elif "/preupload/" in self.path:
                paths = [file["path"] for file in json.loads(body)["files"]]
                answer = {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]}
            elif self.path == "/api/validate-yaml":  # Of the card.
                answer = {"errors": [], "warnings": []}
            else:
                lines = [json.loads(line)["value"] for line in body.splitlines()]
                files = [line for line in lines if "content" in line]
                received["files"] = {file["path"]: base64.b64decode(file["content"]) for file in files}
                answer = {"commitUrl": "https://huggingface.co/lab/digits/commit/0", "commitOid": "0", "hookOutput": ""}
            self._send(answer)

        def do_GET(self):
            self._send({"id": "lab/digits", "sha": "0", "siblings": []})

        def _send(self, answer):
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def export_to(monkeypatch, command, tmp_path):
    """``fdtrain export FOLDER new`` of one who is logged in at a hub, out of reach unless its address is given."""

    def run(folder, *options, endpoint="http://127.0.0.1:9", rc=0):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        return command("export", folder, tmp_path / "new", "--push", "lab/digits", *options, rc=rc)

    return run


def test_the_folder_arrives_whole_and_the_token_is_nowhere_else(folder, tmp_path, export_to):
    received = {}
    with hub_of(received) as endpoint:
        said = export_to(folder, endpoint=endpoint)
    assert said.splitlines()[-1].startswith(f"uploaded to {endpoint}/lab/digits: 4 files, ")
    assert received["created"]["name"] == "digits"
    assert received["created"].get("private") or received["created"].get("visibility") == "private"
    assert received["tokens"] == {f"Bearer {TOKEN}"}
    files = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    assert received["files"] == files
    assert TOKEN not in said
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in path.read_bytes() for path in written)


def test_a_dry_run_needs_no_network(folder, tmp_path, export_to):
    said = export_to(folder, "--dry-run")
    size = sum(path.stat().st_size for path in (tmp_path / "new").iterdir())
    assert said.splitlines()[-1] == f"would be uploaded to lab/digits: 4 files, {size:,} bytes"
    assert f"  model.safetensors  {os.path.getsize(folder / 'model.safetensors'):,} bytes" in said


def test_a_hub_out_of_reach_is_one_line_and_the_export_stays(folder, tmp_path, export_to):
    said = export_to(folder, rc=2)
    (line,) = [line for line in said.splitlines() if line.startswith("fdtrain: error")]
    assert "lab/digits was not uploaded" in line
    assert TOKEN not in said
    assert "Traceback" not in said
    assert (tmp_path / "new" / "export.json").is_file()


@pytest.mark.parametrize("name", ["../digits", "a/b/c", "two words", ""])
def test_names_that_no_repository_has(folder, name):
    with pytest.raises(UserError, match="is not the name of a repository"):
        hub.check(folder, name)


def test_an_edited_folder_is_not_uploaded(folder):
    with (folder / "README.md").open("a") as card:
        card.write("more\n")
    with pytest.raises(UserError, match=r"README.md is not what was exported"):
        hub.check(folder, "lab/digits")
