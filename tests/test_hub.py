"""What is fetched from the Hub: nothing that can hold code, and an error that says what to do where nothing comes."""

from rlhf import hub

import httpx2
import pytest


def test_local_folder_is_taken_as_it_is(tmp_path):
    assert hub.fetch(str(tmp_path)) == tmp_path


def test_only_safe_files_of_the_asked_revision_are_fetched(monkeypatch, tmp_path):
    asked = {}

    def snapshot_download(name, **options):
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(hub, "go_offline_without_connection", lambda: None)
    assert hub.fetch("user/name", revision="v1") == tmp_path
    assert asked == {"name": "user/name", "revision": "v1", "allow_patterns": list(hub.SAFE_FILES)}
    assert not any("bin" in pattern or "pt" in pattern or "py" in pattern for pattern in hub.SAFE_FILES)


@pytest.mark.parametrize("error", [httpx2.ConnectError("no route"), FileNotFoundError("not cached"), ValueError("bad")])
def test_repository_that_does_not_come_is_named(monkeypatch, error):
    def snapshot_download(name, **_):
        raise error

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(hub, "go_offline_without_connection", lambda: None)
    with pytest.raises(ConnectionError, match=r"'user/name' at revision 'v1' can't be fetched .*local folder"):
        hub.fetch("user/name", revision="v1")
