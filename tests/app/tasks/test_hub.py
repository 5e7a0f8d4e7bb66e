"""export.hub: what goes to a Hub that answers on this machine, comes back, and what is said of one that refuses."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from dkel_lightning import DistillationModule
from dkel_lightning.app.runs.folder import Run
from dkel_lightning.app.tasks.export import export_checkpoint
from dkel_lightning.errors import CheckpointError, ConfigError, HubError
from dkel_lightning.export import Preprocessing, export, pull, push
from dkel_lightning.export.hub import describe
from dkel_lightning.export.metadata import Facts
from tests.app.tasks.exporting import digits, exported, logits_of, trained

library = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed: see the extra hub")
NAME = "somebody/digits-dkel"
COMMIT = "c" * 40


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as an upload and a download ask for; `refuses` is the status of every answer."""

    files: dict[str, bytes]
    refuses: int

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            owner, name = json.loads(sent).get("organization"), json.loads(sent)["name"]
            self.answer({"url": f"http://{self.headers['Host']}/{owner}/{name}"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif self.path == f"/api/models/{NAME}/preupload/main":
            files = [file["path"] for file in json.loads(sent)["files"]]
            each = {"uploadMode": "regular", "shouldIgnore": False}
            self.answer({"files": [{"path": path, **each} for path in files]})
        elif self.path == f"/api/models/{NAME}/commit/main":
            for line in map(json.loads, sent.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"commitUrl": f"http://{self.headers['Host']}/{NAME}/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self.answer({"error": f"no {self.path}"}, 404)

    def do_GET(self) -> None:
        place, _, path = self.path.partition(f"/{NAME}/resolve/{COMMIT}/")
        if self.path.startswith(f"/api/models/{NAME}/revision/"):
            self.answer({"id": NAME, "sha": COMMIT, "siblings": [{"rfilename": each} for each in self.files]})
        elif self.path.startswith(f"/api/models/{NAME}/tree/"):
            self.answer([{"type": "file", "path": each, **self.size(each)} for each in self.files])
        elif place == "" and path in self.files:
            self.answer(self.files[path], etag=str(self.size(path)["oid"]))
        else:
            self.answer({"error": f"no {self.path}"}, 404)

    do_HEAD = do_GET  # noqa: N815

    def size(self, path: str) -> dict[str, Any]:
        return {"oid": hashlib.sha1(self.files[path]).hexdigest(), "size": len(self.files[path])}

    def answer(self, content: Any, status: int = 200, etag: str = "") -> None:
        if self.refuses:
            content, status = {"error": "refused by the stub"}, self.refuses
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        head = {"Content-Type": kind, "Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'}
        for name, value in head.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Hub]]:
    """Answer in the place of the Hub, as HF_ENDPOINT says when huggingface_hub is imported."""
    Answering: type[Hub] = type("Answering", (Hub,), {"files": {}, "refuses": 0})
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    at(address, monkeypatch, tmp_path)
    yield Answering
    server.shutdown()
    server.server_close()
    thread.join()


def at(address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    constants = library.constants
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")


def shipped(folder: Path, **facts: Any) -> Path:
    module = DistillationModule.build("resnet8", 10, "dkel", peers=2, in_channels=1, image_size=(8, 8))
    known = Preprocessing(1, 8, 8, (0.5,), (0.25,), tuple("0123456789"))
    images = torch.randn(4, 1, 8, 8)
    return export(module, images, folder, known, repeats=0, facts=Facts(**facts)).folder


def test_a_run_goes_to_the_hub_with_its_figures_and_comes_back_bit_for_bit(
    hub: type[Hub], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = trained(tmp_path / "run")
    result = exported(checkpoint, tmp_path / "out", f"export.hub={NAME}")
    folder, member = result.shipped.folder, result.shipped.member
    assert f"Sent to {library.constants.ENDPOINT}/{NAME}" in capsys.readouterr().out
    assert hub.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert hub.files.keys() == {"README.md", "export.json", "weights.safetensors"}
    card = library.ModelCard(hub.files["README.md"].decode())
    figures = {each.metric_type: each.metric_value for each in card.data.eval_results}
    assert figures["accuracy"] == pytest.approx(result.scores.accuracy[member])
    assert figures.keys() == {"accuracy", "negative_log_likelihood", "expected_calibration_error"}
    (of, *_) = card.data.eval_results
    assert (of.dataset_name, of.dataset_split, of.task_type) == ("digits", "test", "image-classification")
    assert (card.data.library_name, card.data.model_name) == ("dkel_lightning", "digits-dkel")
    assert card.text.lstrip().startswith("# resnet8 trained with dkel")
    images = digits(5)[1]
    back = pull(NAME)
    assert back.record.member == member
    torch.testing.assert_close(back.classify(images), logits_of(checkpoint, member, images))


def test_a_folder_is_sent_again_with_the_metadata_once(hub: type[Hub], tmp_path: Path) -> None:
    folder = shipped(tmp_path / "shipped", data={"set": "mine"}, metrics={"accuracy": 0.75})
    assert push(folder, NAME) == push(str(folder), NAME)
    card = hub.files["README.md"].decode()
    assert card.count("value: 0.75") == card.count("pipeline_tag") == 1
    assert card.startswith("---\n")


@pytest.mark.parametrize(
    ("status", "cure"),
    [
        (401, r"log in with `hf auth login`, or set HF_TOKEN, as one who may write to it"),
        (403, r"take a token that may write to it"),
        (404, r"see that the name is right, and that your token may see it"),
    ],
)
def test_a_hub_that_refuses_is_one_error_with_the_cure_and_the_export_stays(
    status: int, cure: str, hub: type[Hub], tmp_path: Path
) -> None:
    folder = shipped(tmp_path / "shipped")
    hub.refuses = status
    with pytest.raises(HubError, match=rf"does not take {NAME} \(.*{status}.*\): {cure}. The export lies whole in"):
        push(folder, NAME)
    with pytest.raises(HubError, match="Nothing was changed"):
        pull(NAME)
    hub.refuses = 0
    push(folder, NAME)
    assert "weights.safetensors" in hub.files


def test_without_a_network_the_export_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    at("http://127.0.0.1:9", monkeypatch, tmp_path)
    with pytest.raises(HubError, match="see that there is a network"):
        push(shipped(tmp_path / "shipped"), NAME)
    assert (tmp_path / "shipped" / "weights.safetensors").is_file()


@pytest.mark.parametrize("name", ["digits", "somebody/di gits", "a/b/c", "--x/y"])
def test_a_name_that_no_repository_may_have_is_refused_before_anything_is_done(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give user/name"):
        export_checkpoint(Run({"export": {"format": "safetensors", "hub": name}}, tmp_path))


def test_what_is_no_export_is_not_sent(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no export that can be described"):
        push(tmp_path, NAME)
    folder = shipped(tmp_path / "shipped")
    (folder / "export.json").write_text("{}")
    with pytest.raises(CheckpointError):
        describe(folder, NAME)
