"""The environment that make works with is this checkout's own: one that was moved, copied or broken is made anew."""

import os
import shutil
import subprocess
from pathlib import Path

from rlhf.outputs import ROOT

import pytest

# In place of Python: `-c "import ... rlhf"` says where the package is from, `-m venv` makes an environment like this.
# TORCH says whether torch is one with CUDA.
PYTHON = """#!/bin/sh
echo "$@" >> {log}
case "$*" in
  *cuda-toolkit*) test "$TORCH" = cuda ;;
  *rlhf*) cat "$(dirname "$0")/../package_of" ;;
  "-m venv"*) for last in "$@"; do :; done
    rm -rf "$last"/*; mkdir -p "$last/bin"; cp "$0" "$last/bin/python"; echo {here} > "$last/package_of" ;;
esac
"""


class Checkout:
    def __init__(self, folder: Path):
        self.folder, self.venv, self.log = folder, folder / ".venv", folder / "log"
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("Makefile", "requirements.lock", "requirements-cuda.lock", "pyproject.toml"):
            shutil.copy(ROOT / name, folder / name)
        self.python = folder / "python3.12"
        self.python.write_text(PYTHON.format(log=self.log, here=folder.resolve()))
        self.python.chmod(0o755)

    def setup(self, torch: str = "cpu") -> list[str]:
        """What Python was asked for, apart from questions."""
        self.log.write_text("")
        environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
        environment["TORCH"] = torch
        command = ["make", "-C", self.folder, "setup", f"PYTHON={self.python}"]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        return [line for line in self.log.read_text().splitlines() if line.startswith("-m")]


PIP = "-m pip install -qq --disable-pip-version-check --no-deps"
INSTALL = [
    f"{PIP} --require-hashes --no-index -r .venv/torch.lock",
    f"{PIP} --require-hashes -r requirements.lock",
    f"{PIP} --no-build-isolation -e .",
]
VENV = "-m venv --clear .venv"


@pytest.fixture
def checkout(tmp_path) -> Checkout:
    return Checkout(tmp_path / "checkout")


def test_environment_is_made_once(checkout):
    assert checkout.setup() == [VENV, *INSTALL]
    assert checkout.setup() == []


def test_every_installation_checks_hashes_and_that_of_torch_holds_torch_alone(checkout):
    *others, of_cuda, this_project = checkout.setup(torch="cuda")
    assert others == [VENV, *INSTALL[:2]] and this_project == INSTALL[2]
    assert of_cuda == f"{PIP} --require-hashes -r requirements-cuda.lock"
    whole = (checkout.folder / "requirements.lock").read_text()
    first, *hashes = (checkout.venv / "torch.lock").read_text().splitlines()
    assert first.startswith("torch==") and all(line in whole.splitlines() for line in hashes)
    assert len(hashes) > 6 and not hashes[-1].endswith("\\") and all("sha256:" in line for line in hashes)


def test_changed_requirements_are_installed_into_the_same_environment(checkout):
    checkout.setup()
    later = (checkout.venv / ".installed").stat().st_mtime + 5
    os.utime(checkout.folder / "requirements.lock", (later, later))
    assert checkout.setup() == INSTALL


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_environment_of_another_checkout_is_made_anew(checkout, tmp_path, how):
    checkout.setup()
    if how == "moved":
        checkout.folder.rename(tmp_path / "second")
    else:
        shutil.copytree(checkout.folder, tmp_path / "second", symlinks=True)
    second = Checkout(tmp_path / "second")
    assert second.setup() == [VENV, *INSTALL]
    assert second.setup() == []


def test_environment_without_pip_is_made_anew(checkout):
    checkout.setup()
    (checkout.venv / "package_of").unlink()  # the question imports pip too, so it has no answer
    assert checkout.setup() == [VENV, *INSTALL]


def test_environment_of_another_checkout_behind_a_link_is_left_as_it_is(checkout, tmp_path):
    other = Checkout(tmp_path / "other")
    other.setup()
    before = sorted(path.name for path in other.venv.rglob("*"))
    checkout.venv.symlink_to(other.venv)
    assert checkout.setup() == [VENV, *INSTALL]
    assert not checkout.venv.is_symlink() and sorted(path.name for path in other.venv.rglob("*")) == before
