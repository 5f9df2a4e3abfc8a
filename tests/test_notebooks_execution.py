"""The runner on small throw-away notebooks: order, resuming, errors, and what it writes."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from rlhf import outputs, registry, runtime
from rlhf.notebooks import execution
from rlhf.profiles import load_profile

import nbformat
import pytest
from conftest import stage_module
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

RUNNER = outputs.ROOT / "scripts" / "run_notebooks.py"
main = stage_module("scripts/run_notebooks.py")["main"]
FIRST, SECOND, THIRD = "01_one/1_first", "01_one/2_second", "02_two/1_third"
LOG = "from pathlib import Path; (Path.cwd().parents[0] / 'log').open('a').write('{}\\n')"


class Project:
    """Three notebooks that append their name to a log, the outputs of the smoke profile, and the runner."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.outputs = folder / "outputs"
        for name in (FIRST, SECOND, THIRD):
            self.write(name, LOG.format(name))

    def write(self, name: str, *code: str) -> None:
        cells = [new_markdown_cell(f"# {name}\n\n*Time: not run yet*\n\nProse.")]
        for source in code:
            cells += [new_markdown_cell("A cell."), new_code_cell(source)]
        path = self.folder / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(new_notebook(cells=cells), path)

    def run(self, *names: str) -> int:
        (self.folder / "log").unlink(missing_ok=True)
        return main(["--root", str(self.folder), *names])

    @property
    def log(self) -> list[str]:
        """The notebooks that the latest run executed, in order."""
        path = self.folder / "log"
        return path.read_text().split() if path.exists() else []

    def copy(self, name: str) -> nbformat.NotebookNode:
        return nbformat.read(self.outputs / "notebooks" / "smoke" / f"{name}.ipynb", as_version=4)

    def run_json(self) -> dict:
        return json.loads((self.outputs / "evaluation" / "smoke" / "run.json").read_text())


def use_smoke_profile(patch: pytest.MonkeyPatch, folder: Path) -> None:
    for variable in ("FORCE", "RLHF_MODEL", "RLHF_DATASET", "RLHF_MAX_STEPS", "RLHF_SEED", "RLHF_THREADS"):
        patch.delenv(variable, raising=False)
    patch.setenv("RLHF_PROFILE", "smoke")
    patch.setenv("RLHF_OUTPUTS", str(folder / "outputs"))


@pytest.fixture
def project(tmp_path, monkeypatch) -> Project:
    use_smoke_profile(monkeypatch, tmp_path)
    return Project(tmp_path)


@pytest.fixture(scope="module")
def finished_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        use_smoke_profile(patch, folder)
        assert Project(folder).run() == 0
    return folder


@pytest.fixture
def finished(project, finished_folder) -> Project:
    """A project whose three notebooks have finished."""
    shutil.copytree(finished_folder, project.folder, dirs_exist_ok=True)
    return project


def test_runs_all_notebooks_in_order_and_leaves_the_tracked_ones_alone(project):
    tracked = {path: path.read_bytes() for path in project.folder.glob("*/*.ipynb")}
    assert project.run() == 0
    assert project.log == [FIRST, SECOND, THIRD]
    assert all(path.read_bytes() == content for path, content in tracked.items())
    assert list(project.run_json()["notebooks"]) == [FIRST, SECOND, THIRD]


def test_second_call_runs_nothing_and_says_how_to_start_over(finished, capsys):
    assert finished.run() == 0
    assert finished.log == []
    assert "FORCE=1" in capsys.readouterr().out


def test_error_stops_the_run_with_the_traceback_and_a_partial_copy(project, capsys):
    project.write(SECOND, "print('before')", "def broken():\n    raise KeyError('lost')", "broken()", "print('after')")
    assert project.run() == 1
    assert project.log == [FIRST]
    error = capsys.readouterr().err
    assert "KeyError: 'lost'" in error
    assert "raise KeyError" in error
    assert f"{SECOND}.ipynb, cell 3 of 4" in error
    assert "\x1b" not in error
    copy = project.copy(SECOND)
    assert str(project.outputs / "notebooks" / "smoke" / f"{SECOND}.ipynb") in error
    assert copy.metadata.rlhf.finished is False
    assert [bool(cell.outputs) for cell in copy.cells if cell.cell_type == "code"] == [True, False, True, False]
    assert SECOND not in project.run_json()["notebooks"]


def test_resumes_at_the_notebook_that_failed(project):
    project.write(SECOND, "1 / 0")
    assert project.run() == 1
    project.write(SECOND, LOG.format(SECOND))
    assert project.run() == 0
    assert project.log == [SECOND, THIRD]
    assert set(project.run_json()["notebooks"]) == {FIRST, SECOND, THIRD}


def test_code_that_python_cannot_read_is_shown_like_any_error(project, capsys):
    project.write(SECOND, "this is no code")
    assert project.run() == 1
    assert f"error: SyntaxError in {SECOND}.ipynb, cell 1 of 1" in capsys.readouterr().err


def test_path_of_a_written_file_is_no_output_and_other_values_are(project):
    project.write(SECOND, "from pathlib import Path; Path('/') / 'somewhere'", "[Path('a.csv'), 1]")
    assert project.run() == 0
    outputs_of = [cell.outputs for cell in project.copy(SECOND).cells if cell.cell_type == "code"]
    assert [[it.data["text/plain"] for it in shown] for shown in outputs_of] == [[], ["[PosixPath('a.csv'), 1]"]]


def test_dead_kernel_is_an_error_that_names_the_cell(project, capsys):
    project.write(SECOND, "import os; os._exit(1)")
    assert project.run() == 1
    assert f"kernel died in {SECOND}.ipynb, cell 1 of 1" in capsys.readouterr().err


def test_changed_code_reruns_that_notebook_and_all_after_it(finished):
    finished.write(SECOND, LOG.format(SECOND), "x = 1")
    assert finished.run() == 0
    assert finished.log == [SECOND, THIRD]


def test_changed_prose_reruns_nothing(finished):
    path = finished.folder / f"{SECOND}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source = "# Another title"
    nbformat.write(notebook, path)
    finished.run()
    assert finished.log == []


def test_unfinished_copy_does_not_count(finished):
    path = finished.outputs / "notebooks" / "smoke" / f"{THIRD}.ipynb"
    copy = nbformat.read(path, as_version=4)
    copy.metadata.rlhf.finished = False
    nbformat.write(copy, path)
    finished.run()
    assert finished.log == [THIRD]


def test_force_deletes_what_this_profile_wrote_and_nothing_else(finished, monkeypatch):
    kinds = ("checkpoints", "logs", "notebooks", "evaluation", "plots")
    mine = [finished.outputs / kind / "smoke" / "made_before" for kind in kinds]
    other = finished.outputs / "checkpoints" / "lab" / "made_before"
    for path in (*mine, other):
        path.mkdir(parents=True)
    monkeypatch.setenv("FORCE", "1")
    assert finished.run() == 0
    assert finished.log == [FIRST, SECOND, THIRD]
    assert not any(path.exists() for path in mine)
    assert other.exists()


@pytest.mark.parametrize("value", ["", "0", "no", "False"])
def test_force_that_is_switched_off_starts_nothing_over(finished, monkeypatch, value):
    monkeypatch.setenv("FORCE", value)
    assert finished.run() == 0
    assert finished.log == []


def test_other_settings_stop_before_anything_runs_and_show_the_difference(project, monkeypatch, capsys):
    project.write(THIRD, "1 / 0")
    project.run()
    capsys.readouterr()
    monkeypatch.setenv("RLHF_MAX_STEPS", "2")
    assert project.run() == 2
    assert project.log == []
    error = capsys.readouterr().err
    assert "max_steps: 4 before, 2 now" in error
    assert "FORCE=1" in error
    monkeypatch.setenv("FORCE", "1")
    project.write(THIRD, LOG.format(THIRD))
    assert project.run() == 0
    assert project.log == [FIRST, SECOND, THIRD]


def test_setting_that_did_not_exist_then_and_is_not_set_now_stops_nothing(profile):
    path = outputs.notebooks_dir(profile) / "settings.json"
    execution.check_settings(profile)
    older = json.loads(path.read_text())
    older.pop("encoder")
    path.write_text(json.dumps(older))
    execution.check_settings(profile)
    older.pop("seed")
    path.write_text(json.dumps(older))
    with pytest.raises(ValueError, match="seed: None before"):
        execution.check_settings(profile)


def test_number_of_threads_may_change(finished, monkeypatch):
    monkeypatch.setenv("RLHF_THREADS", "2")
    assert finished.run() == 0
    assert finished.log == []


def test_named_notebook_runs_again_and_makes_later_ones_unfinished(finished):
    assert finished.run("2_second") == 0
    assert finished.log == [SECOND]
    assert finished.run() == 0
    assert finished.log == [THIRD]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RLHF_PROFILE": "nonsense"}, "nonsense"),
        ({"RLHF_MAX_STEPS": "many"}, "many"),
        ({"RLHF_OUTPUTS": "{folder}/log/outputs"}, "log"),
    ],
)
def test_invalid_settings_are_one_line_and_no_traceback(project, monkeypatch, capsys, variables, message):
    (project.folder / "log").touch()  # a file where a folder is needed
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(folder=project.folder))
    assert main(["--root", str(project.folder)]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert message in error
    assert "\n" not in error


def test_notebook_of_a_study_runs_only_when_it_is_named_and_makes_no_other_unfinished(project, monkeypatch):
    monkeypatch.setattr(execution, "STUDIES", {SECOND: "make study", THIRD: "make other"})
    assert project.run() == 0 and project.log == [FIRST]
    assert project.run(THIRD) == 0 and project.log == [THIRD]
    assert project.run(SECOND) == 0 and project.log == [SECOND] and project.copy(THIRD).metadata.rlhf.finished
    assert project.run() == 0 and project.log == []
    assert project.run(FIRST) == 0
    assert not any((project.outputs / f"notebooks/smoke/{name}.ipynb").exists() for name in (SECOND, THIRD))


def test_no_notebooks_and_unknown_names_are_errors(project, capsys):
    assert project.run("2_sekond") == 2
    assert "2_sekond" in capsys.readouterr().err
    assert main(["--root", str(project.outputs)]) == 2
    assert "no notebook" in capsys.readouterr().err


def test_force_with_a_named_notebook_deletes_nothing(finished, monkeypatch):
    monkeypatch.setenv("FORCE", "1")
    assert finished.run("2_second") == 2
    assert (finished.outputs / "notebooks" / "smoke" / f"{FIRST}.ipynb").exists()


@pytest.mark.parametrize(("names", "force"), [(["2_second"], ""), ([], "1")])
def test_pulling_with_a_named_notebook_or_with_force_changes_nothing(finished, monkeypatch, capsys, names, force):
    monkeypatch.setenv("FROM", "hub:user/name")
    monkeypatch.setenv("FORCE", force)
    assert finished.run(*names) == 2
    assert "name no notebook with it and leave FORCE out" in capsys.readouterr().err
    assert (finished.outputs / "notebooks" / "smoke" / f"{FIRST}.ipynb").exists()


def test_kernel_has_this_python_the_folder_and_the_environment(project):
    code = "import json, os, sys; print(json.dumps([sys.executable, os.getcwd(), dict(os.environ)]))"
    project.write(FIRST, code)
    project.run(FIRST)
    python, folder, environment = json.loads(project.copy(FIRST).cells[2].outputs[0].text)
    assert python == sys.executable
    assert Path(folder) == project.folder / "01_one"
    for name, value in {
        "RLHF_PROFILE": "smoke",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "TOKENIZERS_PARALLELISM": "true",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "MALLOC_MMAP_MAX_": "0",
    }.items():
        assert environment[name] == value


def test_kernel_is_this_python_whatever_the_environment_and_other_kernels_say(project, monkeypatch):
    foreign = project.folder / "jupyter" / "kernels" / "python3"
    foreign.mkdir(parents=True)
    spec = {"argv": ["/bin/false", "{connection_file}"], "display_name": "Foreign", "language": "python"}
    (foreign / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(project.folder / "jupyter"))
    monkeypatch.setenv("MPLBACKEND", "nonsense")
    project.write(FIRST, "import os, sys; print(sys.executable, os.environ.get('MPLBACKEND'))")
    assert project.run(FIRST) == 0
    python, backend = project.copy(FIRST).cells[2].outputs[0].text.split()
    assert python == sys.executable and backend != "nonsense"


def test_full_disk_does_not_hide_the_cell_that_failed(project, monkeypatch, capsys):
    whole = outputs.write_text

    def full(path, text):
        if path.suffix == ".ipynb":
            raise OSError(28, "No space left on device")
        return whole(path, text)

    monkeypatch.setattr(outputs, "write_text", full)
    project.write(FIRST, "raise KeyError('lost')")
    assert project.run(FIRST) == 1
    error = capsys.readouterr().err
    assert f"error: KeyError in {FIRST}.ipynb, cell 1 of 1" in error and "raise KeyError('lost')" in error
    assert "The notebook as far as it came: not written ([Errno 28] No space left on device)" in error


def test_force_empties_folders_that_are_links_and_keeps_the_links(finished, monkeypatch, tmp_path):
    disk, other, notebooks = tmp_path / "disk", tmp_path / "other", finished.outputs / "notebooks" / "smoke"
    notebooks.rename(disk)
    other.mkdir()
    (other / "of_another").touch()
    (disk / "linked").symlink_to(other)
    notebooks.symlink_to(disk)
    monkeypatch.setenv("FORCE", "1")
    assert finished.run() == 0
    assert finished.log == [FIRST, SECOND, THIRD]
    assert notebooks.is_symlink() and not (disk / "linked").exists() and (other / "of_another").exists()


def test_relative_paths_reach_the_kernel_as_absolute_ones(project, monkeypatch):
    (project.folder / "pairs.jsonl").touch()
    monkeypatch.setattr(outputs, "ROOT", project.folder)
    monkeypatch.setenv("RLHF_PROFILE", "gpt2")
    monkeypatch.setenv("RLHF_DATASET", "./pairs.jsonl")
    monkeypatch.setenv("RLHF_OUTPUTS", "outputs")
    environment = execution.kernel_environment(load_profile())
    assert environment["RLHF_DATASET"] == str(project.folder / "pairs.jsonl")
    assert environment["RLHF_OUTPUTS"] == str(project.outputs)
    for name in ("HF_HUB_OFFLINE", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"):  # the lab's alone
        assert environment.get(name) == os.environ.get(name)


def test_time_line_and_run_json_tell_the_measured_seconds(project):
    project.write(FIRST, "import time; time.sleep(2)")
    project.run()
    first = project.copy(FIRST)
    seconds = first.metadata.rlhf.seconds
    assert 2 < seconds < 60
    line = f"*Time: {seconds:.0f} s at the `smoke` profile on {runtime.hardware()}.*"
    assert first.cells[0].source == f"# {FIRST}\n\n{line}\n\nProse."
    run = project.run_json()
    assert run["notebooks"][FIRST] == seconds
    assert run["settings"]["name"] == "smoke"
    assert run["seed"] == run["settings"]["seed"] == 0
    assert run["versions"]["trl"] == "1.12.0"
    assert run["cpus"] >= 1
    assert set(run["git"]) == {"commit", "dirty"}
    assert run["peak_memory_mb"][FIRST] > 10


def test_git_state_tells_a_changed_tree_from_new_outputs(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True)

    assert execution.git_state(tmp_path) == {"commit": None, "dirty": None}
    git("init")
    (tmp_path / "code.py").write_text("x = 1\n")
    git("add", ".")
    git("commit", "-m", "first")
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "new.csv").touch()
    state = execution.git_state(tmp_path)
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    (tmp_path / "code.py").write_text("x = 2\n")
    assert execution.git_state(tmp_path)["dirty"] is True


def test_slow_cells_are_listed_by_heading_or_first_line(project, capsys):
    project.write(FIRST, "import time\ntime.sleep(1.2)", "quick = 1")
    project.run(FIRST)
    out = capsys.readouterr().out
    assert f"[1/3] {FIRST}" in out
    assert "cell 1 of 2: import time" in out
    assert "cell 2 of 2" not in out
    cells = [new_markdown_cell("# Title\n\n## Training"), new_code_cell("train()"), new_code_cell("\nplot()")]
    assert execution.title(cells, 1) == "Training"
    assert execution.title(cells, 2) == "plot()"


def test_interrupt_kills_the_kernel_and_leaves_a_clean_message(project):
    project.write(
        FIRST, "import os; print(os.getpid(), flush=True)", f"{LOG.format('x')}\nimport time; time.sleep(600)"
    )
    command = [sys.executable, str(RUNNER), "--root", str(project.folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not project.log and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"Interrupted in {FIRST}.ipynb, cell 2 of 2" in error
    assert "The same command, without FORCE, goes on with this notebook." in error
    assert "Traceback" not in error
    copy = project.copy(FIRST)
    assert copy.metadata.rlhf.finished is False
    with pytest.raises(ProcessLookupError):
        os.kill(int(copy.cells[2].outputs[0].text), 0)


def test_a_run_leaves_its_files_and_no_temporary_ones(finished):
    left = {path.name for path in outputs.root().rglob("*") if path.is_file() and path.suffix != ".lock"}
    assert left - {".lock"} == {"1_first.ipynb", "2_second.ipynb", "1_third.ipynb", "run.json", "settings.json"}


def test_what_trainings_go_on_from_lasts_until_their_notebook_has_finished(project):
    kept = outputs.training_dir(load_profile()) / "sft_full" / "step_000003"
    project.write(FIRST, f"import os; os.makedirs({str(kept)!r}, exist_ok=True)", "1 / 0")
    assert project.run() == 1 and kept.exists()
    project.write(FIRST, LOG.format(FIRST))
    assert project.run() == 0 and not kept.parents[1].exists()


def test_checkpoint_of_an_earlier_notebook_with_a_fault_stops_the_run_before_anything_is_executed(
    finished, monkeypatch
):
    monkeypatch.setitem(registry.MODELS, "base", registry.MODELS["base"]._replace(notebook=f"{FIRST}.ipynb"))
    monkeypatch.setitem(registry.BY_CHECKPOINT, "base", "base")
    path = outputs.checkpoint_path(load_profile(), "base")
    path.mkdir()
    (path / "model.safetensors").write_text("weights")
    outputs.write_manifest(path)
    (path / "model.safetensors").write_text("weigh")
    copy, notebooks = finished.copy(SECOND), execution.find_notebooks(finished.folder)
    (finished.folder / "log").unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"base: model\.safetensors has 5 bytes, and 7 were saved; run .* 1_first,"):
        execution.run(notebooks[1:], notebooks, load_profile(), finished.folder)
    assert finished.log == [] and finished.copy(SECOND) == copy


def start(project, *names):
    """The runner in a process of its own, once it executes the first notebook."""
    command = [sys.executable, str(RUNNER), "--root", str(project.folder), *names]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not project.log and process.poll() is None:
        time.sleep(0.1)
    return process


def test_second_run_on_the_same_outputs_stops_at_once_and_names_the_first(project, capsys):
    project.write(FIRST, f"{LOG.format('x')}\nimport time; time.sleep(600)")
    process = start(project)
    try:
        assert main(["--root", str(project.folder)]) == 2
        error = capsys.readouterr().err
        assert f"in use by process {process.pid} (run_notebooks.py" in error and "RLHF_OUTPUTS" in error
    finally:
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in error


def test_run_that_was_killed_leaves_no_lock_although_its_kernel_lives_on(project):
    project.write(
        FIRST, f"import os, time; open('pid', 'w').write(str(os.getpid())); {LOG.format('x')}; time.sleep(60)"
    )
    process = start(project)
    process.kill()
    process.wait()
    project.write(FIRST, LOG.format(FIRST))
    assert project.run() == 0 and project.log == [FIRST, SECOND, THIRD]
    with contextlib.suppress(ProcessLookupError):
        os.kill(int((project.folder / "01_one" / "pid").read_text()), signal.SIGKILL)


def test_change_of_a_module_beside_the_notebook_runs_it_and_those_after_it_again(finished):
    helper = finished.folder / "01_one" / "helper.py"
    helper.write_text("x = 1\n")
    finished.write(SECOND, f"import helper; {LOG.format(SECOND)}")
    finished.run()
    assert finished.log == [SECOND, THIRD]
    finished.run()
    assert finished.log == []
    helper.write_text("x = 2\n")
    finished.run()
    assert finished.log == [SECOND, THIRD]


def test_module_that_changes_while_its_notebook_runs_makes_it_stale(project):
    helper = project.folder / "01_one" / "helper.py"
    helper.write_text("x = 1\n")
    project.write(FIRST, f"import helper; open('helper.py', 'w').write('x = 2'); {LOG.format(FIRST)}")
    project.run()
    project.run()
    assert project.log == [FIRST, SECOND, THIRD]


def test_a_run_writes_nothing_into_the_committed_results(finished, monkeypatch):
    monkeypatch.setattr(outputs, "REFERENCE", finished.folder / "results")
    monkeypatch.setenv("FORCE", "1")
    assert finished.run() == 0
    assert not outputs.REFERENCE.exists()
