"""What surrounds a run: networks that do not answer, proxies, launchers, full disks, folders by another name."""

import errno
import json
import os
from pathlib import Path

from rlhf import demo, download, outputs
from rlhf.hub import __main__ as hub
from rlhf.profiles import load_profile

import pytest
from conftest import run_python
from hub_server import Hub
from huggingface_hub import constants
from huggingface_hub.utils import close_session

PROXIES = [f"{kind}_proxy" for kind in ("http", "https", "all", "no")]


@pytest.fixture
def no_way(monkeypatch):
    """Sets an endpoint of the Hub and a proxy, for a new client."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)

    def set_way(endpoint="http://127.0.0.1:9", **proxies):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        for name, value in proxies.items():
            monkeypatch.setenv(name, value)
        close_session()

    yield set_way
    monkeypatch.undo()
    close_session()


@pytest.mark.parametrize(
    ("proxies", "fault"),
    [
        ({}, "ConnectError"),  # nobody listens
        ({"all_proxy": "socks5://127.0.0.1:9"}, "ImportError: .*SOCKS"),
        ({"http_proxy": "http://127.0.0.1:9"}, "ConnectError"),
        ({"http_proxy": "carrier-pigeon://127.0.0.1:9"}, "ValueError: Unknown scheme for proxy"),
    ],
)
def test_network_that_does_not_answer_is_one_line_and_exit_status_2(
    profile, no_way, capsys, monkeypatch, proxies, fault
):
    no_way(**proxies)
    monkeypatch.setenv("RLHF_PROFILE", "smoke")
    assert hub.main(["pull", "user/name"]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert error.startswith("error: model repository 'user/name' can't be fetched (")
    with pytest.raises(ConnectionError, match=f"127.0.0.1:9 can't be asked: {fault}"):
        download.fetch("user/name")


def test_server_without_a_certificate_that_is_trusted_is_named(no_way):
    server = Hub()
    no_way(server.url.replace("http://", "https://"))
    assert "SSL" in download.hub_fault()
    server.close()


def test_address_that_is_none_and_a_name_that_is_none_are_connection_errors(no_way):
    no_way("no-scheme")
    with pytest.raises(ConnectionError, match="no-scheme can't be asked: UnsupportedProtocol"):
        download.fetch("user/name")
    message = r"can't be published \(ConnectError: refused\); check connection"
    with (
        pytest.raises(ConnectionError, match=message),
        download.as_one_line("x can't be published", "check connection"),
    ):
        raise download.httpx2.ConnectError("refused\nwith a second line")


@pytest.mark.parametrize("given", ["", "example.org", "example.org,localhost,127.0.0.1,::1"])
def test_this_machine_is_asked_without_a_proxy(given):
    code = "import os, json, rlhf; print(json.dumps([os.environ['no_proxy'], os.environ['NO_PROXY']]))"
    lower, upper = json.loads(run_python(code, no_proxy=given, NO_PROXY="other.example"))
    assert lower == upper
    assert lower.split(",") == [(given or "other.example").split(",")[0], "localhost", "127.0.0.1", "::1"]


def test_launcher_around_a_run_does_not_reach_its_trainers():
    code = "import os, rlhf; print([n for n in os.environ if 'RANK' in n or n in ('WORLD_SIZE', 'ACCELERATE_USE_CPU')])"
    launcher = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "1"}
    assert run_python(code, **launcher).strip() == "[]"


def test_relative_outputs_and_home_mean_the_same_folder_wherever_a_stage_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value, folder in (("mine", outputs.ROOT / "mine"), ("~/runs", tmp_path / "home" / "runs"), (" ", None)):
        monkeypatch.setenv("RLHF_OUTPUTS", value)
        assert outputs.root() == (folder or outputs.ROOT / "outputs")


def test_paths_of_models_and_data_are_of_the_checkout_or_the_home(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "ROOT", tmp_path / "checkout")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for folder in ("checkout/model", "home/pairs", "elsewhere/model"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("RLHF_MODEL", "model")
    monkeypatch.setenv("RLHF_DATASET", "~/pairs")
    profile = load_profile("gpt2")
    assert (profile.model, profile.dataset) == (str(tmp_path / "checkout/model"), str(tmp_path / "home/pairs"))
    assert download.fetch("./model") == tmp_path / "checkout/model"


def test_checkpoint_that_the_disk_has_no_room_for_leaves_the_old_one_and_no_part_of_the_new(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "checkpoint"
    path.mkdir()
    (path / "model").write_text("old")
    with pytest.raises(OSError, match="No space left"), outputs.new_folder(path) as folder:
        (folder / "model").write_text("half of the n")
        full()
    assert (path / "model").read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_checkpoint_that_cannot_be_put_in_place_leaves_the_old_one(tmp_path, monkeypatch):
    path, moved = tmp_path / "checkpoint", os.replace

    def fails_for_the_new_one(source, target):
        if Path(source).name == "new":
            raise OSError(errno.EIO, "Input/output error")
        moved(source, target)

    path.mkdir()
    (path / "model").write_text("old")
    monkeypatch.setattr(os, "replace", fails_for_the_new_one)
    with pytest.raises(OSError, match="Input/output"), outputs.new_folder(path) as folder:
        (folder / "model").write_text("new")
    assert (path / "model").read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_demo_names_the_variable_of_a_repository_that_is_none(monkeypatch, capsys, no_way):
    no_way()
    monkeypatch.setenv("RLHF_REPO", "nobody/nothing")
    assert demo.main() == 2
    assert capsys.readouterr().err.startswith("error: RLHF_REPO='nobody/nothing': model repository 'nobody/nothing'")
