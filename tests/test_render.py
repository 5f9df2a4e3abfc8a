"""Rendering: the outputs of an executed notebook become those of the tracked one, or nothing is written."""

from rlhf.profiles import load_profile

import nbformat
import pytest
import render_notebooks
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from render_notebooks import clean_output, last_states, machine_paths
from run_notebooks import copy_of, fingerprint

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
    profile = load_profile("lab")

    def render(tracked, executed, **run):
        path = tmp_path / "01_one" / "1_first.ipynb"
        path.parent.mkdir(exist_ok=True)
        nbformat.write(tracked, path)
        if executed is not None:
            executed.metadata["rlhf"] = {
                "finished": True,
                "seconds": 73.2,
                "run": fingerprint(profile),
                "device": "2 CPU cores",
                "commit": "a" * 40,
                **run,
            }
            copy_of(path, profile).parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(executed, copy_of(path, profile))
        return render_notebooks.main(["--root", str(tmp_path)]), path

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
        (notebook(), {"run": "another"}, "other settings"),
        (notebook(code=("a = 2", "print(a)")), {}, "code has changed"),
        (notebook(new_output("error", ename="E", evalue="", traceback=[])), {}, "cell 3 shows an error"),
        (notebook(new_output("stream", text="saved to /" + "home/someone/model\n")), {}, "machine path"),
        (notebook(new_output("stream", text="x" * 400_000)), {}, "more than 400 kB"),
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
        return clean_output(new_output("stream", name="stderr", text=text), 1, {})

    assert stderr(BAR) is None
    assert stderr("Map: 12 examples [00:01, 10 examples/s]\n") is None
    assert stderr(f"{BAR}UserWarning: careful\n").text == "UserWarning: careful\n"
    widget = new_output("display_data", data={render_notebooks.WIDGET: {"model_id": "x"}, "text/plain": "0%"})
    assert clean_output(widget, 1, {}) is None


def test_the_path_of_a_written_file_is_no_output():
    path = new_output("execute_result", data={"text/plain": "PosixPath('/" + "somewhere/outputs/a.csv')"})
    value = new_output("execute_result", data={"text/plain": "[PosixPath('a.csv'), 1]"})
    assert clean_output(path, 1, {}) is None
    assert clean_output(value, 1, {}).data == value.data


def test_random_ids_and_addresses_become_stable():
    html = '<style>#T_1a2b3_row0 {}</style><td id="T_1a2b3_row0"><td id="T_fffff_row1">'
    output = new_output("execute_result", data={"text/html": html, "text/plain": "<A at 0x7f00deadbeef>"})
    cleaned = clean_output(output, 4, {})
    assert cleaned.data["text/html"] == ('<style>#T_00000_row0 {}</style><td id="T_00000_row0"><td id="T_00001_row1">')
    assert cleaned.data["text/plain"] == "<A>"
    assert cleaned.execution_count == 4


def test_machine_paths_are_told_from_relative_ones_and_addresses_of_the_web():
    for path in ("home/someone/x", "tmp/run", "Users/someone/x", "root/x"):
        assert machine_paths(f"saved to /{path}") != []
    for text in ("outputs/tmp/x", "https://example.org/home/someone/x", "and/or", "~/x"):
        assert machine_paths(text) == []
