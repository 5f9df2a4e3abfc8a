"""Fetching from the Hub: only safe files, from the cache without a connection, and errors that say what to do."""

import json
import socket

from rlhf import download, files

import httpx2
import pytest
from conftest import run_python
from hub_server import Hub


@pytest.fixture(scope="module")
def server():
    server = Hub()
    weights = dict.fromkeys(("model.safetensors", "model.bin", "consolidated.safetensors"), b"weights")
    server.commit("user/model", {"config.json": b"{}", **weights})
    rows = {f"data/train{ending}": b"rows" for ending in (*files.ENDINGS, *files.COMPRESSED)}
    server.commit("user/data", {"data.py": b"print()", "README.md": b"# Data", **rows})
    yield server
    server.close()


def fetched(url: str, home, name: str, kind: str) -> list[str]:
    """The names of the files that a process of its own gets."""
    code = f"import json; from rlhf import download; folder = download.fetch({name!r}, kind={kind!r})\n"
    code += "print(json.dumps(sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*.*'))))"
    settings = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    return json.loads(run_python(code, **settings).splitlines()[-1])


@pytest.mark.parametrize(
    ("kind", "name", "safe"),
    [
        ("model", "user/model", ["config.json", "model.safetensors"]),
        (
            "dataset",
            "user/data",
            sorted(["README.md", *(f"data/train{ending}" for ending in (*files.ENDINGS, *files.COMPRESSED))]),
        ),
    ],
)
def test_only_safe_files_are_fetched_and_the_cache_has_them_without_a_connection(server, tmp_path, kind, name, safe):
    assert fetched(server.url, tmp_path, name, kind) == safe
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert fetched(nobody, tmp_path, name, kind) == safe


def test_local_folder_is_taken_as_it_is(tmp_path):
    assert download.fetch(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("error", [httpx2.ConnectError("no route"), FileNotFoundError("not cached"), ValueError("bad")])
@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_repository_that_does_not_come_is_an_error_that_says_what_to_do(monkeypatch, error, kind):
    def snapshot_download(name, **_):
        raise error

    monkeypatch.setattr(download, "snapshot_download", snapshot_download)
    monkeypatch.setattr(download, "hub_fault", lambda: "")
    with pytest.raises(ConnectionError, match=rf"{kind} repository 'user/name' at revision 'v1' can't .*local folder"):
        download.fetch("user/name", revision="v1", kind=kind)
