from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dkel_lightning.data.files import download
from dkel_lightning.data.files.download import fetch
from dkel_lightning.data.readers import tinyimagenet
from dkel_lightning.errors import DataError
from tests.disks import file_size_limit

from .archives import tiny_members, tiny_of, write_zip

CONTENT = bytes(range(256)) * 500
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    content = CONTENT
    drop_after: int | None = None
    ranges = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requested: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file.zip"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requested.append(wanted)
        start = int(re.sub(r"\D", "", wanted)) if wanted and self.server.ranges else 0
        if start and start >= len(self.server.content):
            self.send_error(416)
            return
        body = self.server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.drop_after])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_whole_file_arrives(server: Server, tmp_path: Path) -> None:
    fetch(server.url, tmp_path / "new" / "file.zip", MD5)
    assert (tmp_path / "new" / "file.zip").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file.zip"]


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_goes_on_where_it_stopped(server: Server, tmp_path: Path, ranges: bool) -> None:
    server.drop_after, server.ranges = 1000, ranges
    with pytest.raises(DataError, match=r"failed .*Run again to go on where it stopped"):
        fetch(server.url, tmp_path / "file.zip", MD5)
    assert not (tmp_path / "file.zip").exists()
    assert (tmp_path / "file.zip.part").stat().st_size == 1000
    server.drop_after = None
    fetch(server.url, tmp_path / "file.zip", MD5)
    assert server.requested == [None, "bytes=1000-"]
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_started_over(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.zip.part").write_bytes(bytes(len(CONTENT) + 5))
    fetch(server.url, tmp_path / "file.zip", MD5)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


def test_another_content_never_becomes_the_file(server: Server, tmp_path: Path) -> None:
    server.content = b"a login page"
    with pytest.raises(DataError, match=f"instead of {MD5}; it was removed"):
        fetch(server.url, tmp_path / "file.zip", MD5)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_never_stops_does_not_fill_the_disk(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_MOST_BYTES", 10_000)
    monkeypatch.setattr(download, "_CHUNK", 1_000)
    with pytest.raises(DataError, match="gives more than 10000 bytes, so it is another file; it was removed"):
        fetch(server.url, tmp_path / "file.zip", MD5)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_stops_a_download_which_goes_on_when_there_is_room(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file.zip").write_bytes(b"an older file")
    monkeypatch.setattr(download, "_CHUNK", 1_000)
    message = r"stopped .*make room in .* and run again to go on from there"
    with file_size_limit(20_000), pytest.raises(DataError, match=message):
        fetch(server.url, tmp_path / "file.zip", MD5)
    assert (tmp_path / "file.zip").read_bytes() == b"an older file"
    kept = (tmp_path / "file.zip.part").stat().st_size
    assert 0 < kept <= 20_000
    fetch(server.url, tmp_path / "file.zip", MD5)
    assert server.requested == [None, f"bytes={kept}-"]
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


def test_no_network_is_one_error_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"downloading http://127.* failed .*put file\.zip into .* by hand"):
        fetch("http://127.0.0.1:9/file.zip", tmp_path / "file.zip", MD5)


def test_tinyimagenet_downloads_its_zip(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.content = write_zip(tmp_path / "source.zip", tiny_members()).read_bytes()
    monkeypatch.setattr(tinyimagenet, "URL", server.url)
    monkeypatch.setattr(tinyimagenet, "MD5", hashlib.md5(server.content).hexdigest())
    tiny_of(tmp_path / "data", download=True).prepare_data()
    assert len(tiny_of(tmp_path / "data").read().train) == 6
    tiny_of(tmp_path / "data", download=True).prepare_data()
    assert len(server.requested) == 1
