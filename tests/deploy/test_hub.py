"""An export goes to a stand-in of the Hugging Face hub on loopback."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml


class Hub(ThreadingHTTPServer):
    """Takes what the client of the hub sends for a new repository and a commit of small files."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.refuses = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *arguments: object) -> None:
        pass

    def reply(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.reply({"id": "team/model", "sha": "0" * 40, "siblings": []})

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.server.refuses:
            self.reply({"error": "You don't have the rights to create a model"}, 403)
        elif self.path == "/api/repos/create":
            self.server.repositories.append(json.loads(body))
            self.reply({"url": f"{self.server.address}/team/model", "id": "team/model"})
        elif self.path == "/api/validate-yaml":
            self.reply({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]
            self.reply({"files": modes})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            commit = {"commitUrl": f"{self.server.address}/team/model/commit/{'1' * 40}", "commitOid": "1" * 40}
            self.reply(commit | {"success": True})
        else:
            self.reply({"error": f"unknown {self.path}"}, 404)


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def export(trained: dict[str, Any], out: Path, hub: Hub, name: str, token: str = "hf_made_up") -> tuple[int, str, str]:
    run = trained["translator"].directory
    command = [sys.executable, "-m", "raydelta.cli", "export", str(run), "--out", str(out), "--push-to-hub", name]
    environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_HOME": str(out.parent / "hf"), "HF_TOKEN": token}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    return done.returncode, done.stdout, done.stderr


def test_an_export_becomes_a_private_repository_with_its_card(
    trained: dict[str, Any], hub: Hub, tmp_path: Path
) -> None:
    code, printed, errors = export(trained, tmp_path / "model", hub, "team/model")
    assert code == 0, errors
    assert f"pushed             {hub.address}/team/model/commit/" in printed
    assert hub.tokens == {"Bearer hf_made_up"}
    (made,) = hub.repositories
    assert (made["name"], made["organization"]) == ("model", "team")
    assert made.get("private") or made["visibility"] == "private"  # older clients, newer ones
    assert hub.files == {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    front = yaml.safe_load(hub.files["README.md"].decode().split("---")[1])
    assert front["library_name"] == "raydelta" and front["pipeline_tag"] == "image-segmentation"
    assert front["license"] == "other"


def test_a_hub_that_refuses_leaves_the_export(trained: dict[str, Any], hub: Hub, tmp_path: Path) -> None:
    hub.refuses = True
    code, _, errors = export(trained, tmp_path / "model", hub, "team/model")
    assert code == 1
    assert "team/model: not pushed: " in errors and "Traceback" not in errors
    assert (tmp_path / "model" / "README.md").exists()


@pytest.mark.parametrize(
    ("name", "token", "message"), [("model", "x", "expected OWNER/NAME"), ("team/model", "", "no token: set HF_TOKEN")]
)
def test_what_cannot_work_is_said_before_the_export(
    name: str, token: str, message: str, trained: dict[str, Any], hub: Hub, tmp_path: Path
) -> None:
    code, _, errors = export(trained, tmp_path / "model", hub, name, token)
    assert code == 1 and message in errors
    assert not (tmp_path / "model").exists() and not hub.tokens
