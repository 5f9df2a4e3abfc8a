"""Rendering: the outputs of an executed notebook become those of the tracked one, or nothing is written."""

import re

from rlhf import outputs, report
from rlhf.notebooks import rendering
from rlhf.notebooks.rendering import clean_output, last_states, machine_paths
from rlhf.notebooks.staleness import copy_of, key_of
from rlhf.profiles import load_profile
from rlhf.studies import seeds

import nbformat
import pandas as pd
import pytest
from conftest import stage_module
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

BAR = "\rtraining:  50%|█████     | 1/2 [00:01<00:01]\rtraining: 100%|██████████| 2/2 [00:02<00:00]\n"


def notebook(*outputs, prose="# Title\n\n*Time: not run yet*", code=("a = 1", "print(a)")):
    cells = [new_markdown_cell(prose, id="prose")]
    cells += [new_code_cell(source, id=f"code-{i}", metadata={"execution": {}}) for i, source in enumerate(code)]
    if outputs:
        cells[-1].outputs = list(outputs)
    return new_notebook(cells=cells)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Write a notebook and its executed copy; render; return the exit status and the notebook's path."""
    monkeypatch.setenv("RLHF_OUTPUTS", str(tmp_path / "outputs"))
    for variable in ("MODEL", "DATASET", "MAX_STEPS", "SEED", "THREADS"):
        monkeypatch.delenv(f"RLHF_{variable}", raising=False)
    monkeypatch.setattr(outputs, "REFERENCE", tmp_path / "results")
    monkeypatch.setattr(report, "write_readme", lambda _: None)  # needs the CSVs of a whole run
    profile = load_profile("lab")
    for folder in (outputs.evaluation_dir, outputs.plots_dir):
        folder(profile).mkdir(parents=True)
        folder(profile, outputs.REFERENCE).mkdir(parents=True)

    def render(tracked, executed, **run):
        path = tmp_path / "01_one" / "1_first.ipynb"
        path.parent.mkdir(exist_ok=True)
        if executed is not None:
            nbformat.write(executed, path)  # as the notebook was when it ran
            executed.metadata["rlhf"] = {
                "finished": True,
                "seconds": 73.2,
                "key": key_of(path, profile),
                "hardware": "2 CPU cores",
                "commit": "a" * 40,
                **run,
            }
            copy_of(path, profile).parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(executed, copy_of(path, profile))
        nbformat.write(tracked, path)
        return stage_module("scripts/render_notebooks.py")["main"](["--root", str(tmp_path)]), path

    return render


def test_outputs_are_taken_and_prose_is_kept(place):
    tracked = notebook(prose="# New title\n\n*Time: not run yet*\n\nNew prose.")
    status, path = place(tracked, notebook(new_output("stream", text="1\n")))
    assert status == 0
    rendered = nbformat.read(path, as_version=4)
    time = "*Time: 73 s at the `lab` profile on 2 CPU cores.*"
    assert rendered.cells[0].source == f"# New title\n\n{time}\n\nNew prose."
    assert [cell.execution_count for cell in rendered.cells[1:]] == [1, 2]
    assert rendered.cells[2].outputs[0].text == "1\n"
    assert [cell.id for cell in rendered.cells] == ["prose", "code-0", "code-1"]
    assert all(not cell.metadata for cell in rendered.cells)
    assert rendered.metadata.kernelspec.name == "python3"
    assert "rlhf" not in rendered.metadata


def test_rendering_twice_gives_the_same_bytes(place):
    executed = notebook(new_output("stream", text="1\n"))
    _, path = place(notebook(), executed)
    first = path.read_bytes()
    _, path = place(nbformat.read(path, as_version=4), executed)
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    ("executed", "run", "message"),
    [
        (None, {}, "not been executed"),
        (notebook(), {"finished": False}, "not finished"),
        (notebook(), {"key": "another"}, "changed after it was executed"),
        (notebook(code=("a = 2", "print(a)")), {"key": "of this code"}, "its code, a module"),
        (notebook(new_output("error", ename="E", evalue="", traceback=[])), {}, "cell 3 shows an error"),
        (notebook(new_output("stream", text="saved to /" + "home/someone/model\n")), {}, "machine path"),
        (notebook(new_output("stream", text="x" * 500_000)), {}, "more than 500 kB"),
    ],
)
def test_nothing_is_written_when(place, capsys, executed, run, message):
    tracked = notebook()
    status, path = place(tracked, executed, **run)
    assert status == 1
    error = capsys.readouterr().err
    assert "01_one/1_first" in error
    assert message in error
    assert nbformat.read(path, as_version=4) == tracked


def test_rewritten_lines_keep_their_last_state():
    assert last_states("a\rb\rc\nplain\n\x1b[31mred\x1b[0m\r\n") == "c\nplain\nred\n"


def test_progress_bars_go_and_warnings_stay():
    def stderr(text):
        return clean_output(new_output("stream", name="stderr", text=text), 1)

    assert stderr(BAR) is None
    assert stderr("Map: 12 examples [00:01, 10 examples/s]\n") is None
    assert stderr(f"{BAR}UserWarning: careful\n").text == "UserWarning: careful\n"
    widget = new_output("display_data", data={rendering.WIDGET: {"model_id": "x"}, "text/plain": "0%"})
    assert clean_output(widget, 1) is None


def test_addresses_in_memory_go_and_cells_are_counted_anew():
    output = new_output("execute_result", data={"text/html": "<b>1</b>", "text/plain": "<A at 0x7f00deadbeef>"})
    cleaned = clean_output(output, 4)
    assert cleaned.data == {"text/html": "<b>1</b>", "text/plain": "<A>"}
    assert cleaned.execution_count == 4


def test_machine_paths_are_told_from_relative_ones_and_addresses_of_the_web():
    for path in ("home/someone/x", "tmp/run", "Users/someone/x", "root/x"):
        assert machine_paths(f"saved to /{path}") != []
    for text in ("outputs/tmp/x", "https://example.org/home/someone/x", "and/or", "~/x"):
        assert machine_paths(text) == []


def test_results_become_what_the_run_made_and_keep_what_only_a_study_makes(place, tmp_path, capsys):
    run, results = tmp_path / "outputs", tmp_path / "results"
    there = (results, "rouge.csv"), (results, "gone.csv"), (results, "judge.csv"), (results, "ppo_grid.csv")
    there += ((results, "troubleshooting_alarms.csv"), (results, "beyond_given.csv"), (results, "labels.csv"))
    for folder, name in ((run, "rouge.csv"), *there):
        (folder / "evaluation" / "lab" / name).write_text(folder.name)
    (run / "plots" / "lab" / "paired.png").write_text("new")
    (results / "plots" / "lab" / "judge.png").write_text("old")
    (run / "evaluation" / "lab" / ".rouge.csv.lock").touch()
    assert place(notebook(), notebook())[0] == 0
    found = {path.relative_to(results).as_posix(): path.read_text() for path in results.rglob("*") if path.is_file()}
    assert found == {
        "evaluation/lab/rouge.csv": "outputs",
        "evaluation/lab/judge.csv": "results",
        "evaluation/lab/ppo_grid.csv": "results",
        "evaluation/lab/troubleshooting_alarms.csv": "results",
        "evaluation/lab/beyond_given.csv": "results",
        "evaluation/lab/labels.csv": "results",
        "plots/lab/paired.png": "new",
        "plots/lab/judge.png": "old",
    }
    printed = capsys.readouterr().out
    assert "judge.csv: kept, of an earlier study" in printed and "gone.csv: deleted, no longer made" in printed


def test_rows_of_other_seeds_stay_where_they_have_not_run_here(place, monkeypatch, capsys):
    def rows(*of):
        return pd.DataFrame({"seed": [seed for seed, _ in of], "mean": [mean for _, mean in of]})

    profile, names = load_profile("lab"), ("seeds.csv", "paired.csv")
    monkeypatch.setattr(seeds, "rows_of", lambda *_: dict.fromkeys(names, rows((0, 0.5))))
    outputs.write_csv(profile, "paired.csv", rows((0, 0.5)))
    for name in names:
        outputs.write_csv(profile, name, rows((0, 0.1), (1, 0.2), (2, 0.3)), outputs.REFERENCE)
    assert place(notebook(), notebook())[0] == 0
    assert "paired.csv: rows of the seeds 1, 2 kept" in capsys.readouterr().out
    for name in names:
        table = outputs.read_csv(profile, name, outputs.REFERENCE)
        pd.testing.assert_frame_equal(table, rows((0, 0.5), (1, 0.2), (2, 0.3)))


def test_results_stay_where_nothing_is_rendered(place, tmp_path):
    kept = tmp_path / "results" / "evaluation" / "lab" / "gone.csv"
    kept.write_text("results")
    assert place(notebook(), None)[0] == 1
    assert kept.exists()


def test_plots_that_are_kept_are_those_of_the_study_notebook():
    code = (outputs.ROOT / "03_ppo_alignment" / "4_overoptimisation.ipynb").read_text(encoding="utf-8")
    written = set(re.findall(r'write_figure\(profile, \\"(\w+)\.png', code))
    assert written == set(rendering.STUDY_PLOTS)
