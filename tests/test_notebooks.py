"""The tracked notebooks: valid, rendered in order, in the form of a chapter, without traces of a machine."""

import json
import re

from rlhf.notebooks.execution import find_notebooks
from rlhf.notebooks.rendering import MAX_BYTES, machine_paths, texts_of
from rlhf.notebooks.staleness import name_of
from rlhf.outputs import ROOT

import nbformat
import pytest

NUMBERED, RECIPES = (sorted(ROOT.glob(pattern)) for pattern in ("0?_*/*.ipynb", "recipes/*.ipynb"))
NOTEBOOKS = NUMBERED + RECIPES
TOKEN = re.compile(r"\b(?:hf|ghp|sk|glpat)[_-][A-Za-z0-9]{20,}\b")


@pytest.fixture(params=NOTEBOOKS, ids=name_of)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_notebooks_and_the_runner_finds_all_of_them():
    assert NUMBERED and RECIPES
    assert find_notebooks(ROOT) == NUMBERED


def test_is_valid_and_asks_for_the_kernel_python3(notebook):
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"


def test_was_rendered_in_order_without_gaps(notebook):
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))


def test_shows_no_error(notebook):
    assert not any(output.output_type == "error" for cell in code_cells(notebook) for output in cell.outputs)


def test_has_no_empty_cell(notebook):
    assert [number for number, cell in enumerate(notebook.cells, 1) if not cell.source.strip()] == []


def test_every_code_cell_follows_prose(notebook):
    kinds = ["code", *(cell.cell_type for cell in notebook.cells)]
    assert [i for i in range(1, len(kinds)) if kinds[i] == kinds[i - 1] == "code"] == []


def test_code_cells_are_at_most_15_lines(notebook):
    lengths = {cell.id: len(cell.source.strip().splitlines()) for cell in code_cells(notebook)}
    assert {cell: length for cell, length in lengths.items() if length > 15} == {}


def test_opens_with_a_heading_and_the_time_and_closes_with_what_comes_next(path, notebook):
    first, last = notebook.cells[0], notebook.cells[-1]
    assert first.cell_type == last.cell_type == "markdown"
    assert re.match(r"# [^#\s]", first.source)
    prose = "\n".join(cell.source for cell in notebook.cells[:3] if cell.cell_type == "markdown")
    assert path in RECIPES or re.search(r"^\*Time: \d+ s at the `lab` profile", prose, re.MULTILINE)
    assert re.search(r"\bnext\b", last.source, re.IGNORECASE)


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_recipe_is_compact_and_names_its_model_on_top(path):
    cells = nbformat.read(path, as_version=4).cells
    assert len(cells) <= 45
    run = json.loads((ROOT / "results" / "evaluation" / path.stem / "run.json").read_text(encoding="utf-8"))
    assert run["settings"]["model"] in cells[0].source.lower()


def test_is_small_enough_to_be_shown(path):
    assert path.stat().st_size <= MAX_BYTES


def test_holds_no_machine_path_and_no_token(notebook):
    for number, text in texts_of(notebook):
        assert machine_paths(text) == [], f"cell {number}"
        assert not TOKEN.search(text), f"cell {number}"


def test_installs_nothing(notebook):
    assert not any(re.search(r"\bpip3? install\b", cell.source) for cell in code_cells(notebook))
