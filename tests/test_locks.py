"""The lock files hold what is installed: the versions of the requirement files, each with the hashes of its files."""

import importlib.metadata
import re

from rlhf.outputs import ROOT

import pytest
from conftest import stage_module
from packaging.markers import Marker
from test_project import pins

LOCKS = {
    "requirements.lock": ("requirements.txt", "demo/requirements.txt", "constraints.txt"),
    "requirements-book.lock": ("requirements-book.txt",),
    "requirements-smollm2.lock": ("requirements-smollm2.txt",),
    "requirements-minilm.lock": ("requirements-minilm.txt",),
}
CUDA = "requirements-cuda.lock"
ENTRY = re.compile(r"([a-z0-9-]+)==([\w.]+)(?: ; (.+?))?((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n")
lock = stage_module("scripts/lock.py")


def entries(name: str) -> dict[str, tuple]:
    """package -> (version, marker, hashes). Fails at a line that is no part of an entry."""
    text = (ROOT / name).read_text().removeprefix(lock["HEADER"])
    assert ENTRY.sub("", text) == ""
    found = ENTRY.findall(text)
    assert len(found) == len({package for package, *_ in found})
    return {package: (version, marker, re.findall(r"\w{64}", hashes)) for package, version, marker, hashes in found}


@pytest.mark.parametrize("name", LOCKS)
def test_lock_has_the_versions_of_its_requirement_files_and_nothing_else(name):
    wanted = {package: version for file in LOCKS[name] for package, version in pins(file).items()}
    assert {package: version for package, (version, *_) in entries(name).items()} == wanted, "run make lock"


def test_what_torch_needs_for_cuda_is_locked_apart_and_for_linux_alone():
    found = entries(CUDA)
    assert {"cuda-toolkit", "nvidia-cudnn-cu13", "triton"} <= found.keys()
    assert all(lock["CUDA"].match(package) and "sys_platform == 'linux'" in it[1] for package, it in found.items())
    assert not any(lock["CUDA"].match(package) for name in LOCKS for package in entries(name))


def test_builds_of_torch_without_cuda_are_accepted_too():
    cpu = [line.split()[0] for line in lock["CPU_HASHES"].split("\n") if line]
    assert len(cpu) == 6 and set(cpu) < set(entries("requirements.lock")["torch"][2])


def test_these_tests_run_on_what_is_locked():
    found = entries("requirements.lock").items()
    here = {package: version for package, (version, marker, _) in found if not marker or Marker(marker).evaluate()}
    assert {package: importlib.metadata.version(package).split("+")[0] for package in here} == here


def test_hashes_of_another_torch_are_not_carried_over(monkeypatch):
    main = lock["main"]
    monkeypatch.setitem(main.__wrapped__.__globals__, "resolved", lambda *_: {"torch": "torch==99.0 \\\n"})
    with pytest.raises(ValueError, match=r"are of torch==2\.13\.0, and another is pinned"):
        main.__wrapped__()


def test_requirements_that_contradict_each_other_are_named(tmp_path, monkeypatch):
    (tmp_path / "uv.py").write_text("import sys\nsys.exit('No solution found')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"(?s)requirements\.txt can't be resolved.*No solution found"):
        lock["resolved"]("requirements.txt")
