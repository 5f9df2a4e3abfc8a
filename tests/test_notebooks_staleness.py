"""When a notebook has to run again: its code, what it imports, its settings and its data, and nothing else."""

import dataclasses
import os
import shutil

from rlhf.notebooks import staleness
from rlhf.notebooks.staleness import content_of, imported_files, key_of
from rlhf.outputs import ROOT
from rlhf.profiles import load_profile

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

NOTEBOOKS = {path.stem: path for path in sorted(ROOT.glob("0?_*/*.ipynb"))}


@pytest.fixture
def package(tmp_path):
    """A copy of the package, which a test may change."""
    copy = tmp_path / "rlhf"
    shutil.copytree(staleness.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def stale_after(package, change, profile):
    """The notebooks whose key changes with the file `change` of the package."""
    before = {name: key_of(path, profile, package) for name, path in NOTEBOOKS.items()}
    with (package / change).open("a") as file:
        file.write("\n# changed\n")
    return {name for name, path in NOTEBOOKS.items() if key_of(path, profile, package) != before[name]}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("ppo/algorithm.py", {"1_ppo_alignment", "2_ppo_from_scratch", "5_troubleshooting", "6_beyond_ppo"}),
        ("ppo/settings.py", {"1_ppo_alignment", "2_ppo_from_scratch", "5_troubleshooting", "6_beyond_ppo"}),
        ("dpo.py", {"6_beyond_ppo"}),
        ("evaluation/probes.py", {"3_evaluation"}),
        ("profiles.py", set(NOTEBOOKS)),
        ("lab/world.toml", set(NOTEBOOKS)),
        ("lab/base/word_pairs.txt", set(NOTEBOOKS)),
        ("registry.toml", set(NOTEBOOKS)),
        ("profiles.toml", set()),  # the settings of the run count, not those of other profiles
        ("hub/cards.py", set()),
        ("demo.py", set()),
    ],
)
def test_change_of_a_module_makes_those_stale_that_import_it_directly_or_not(package, profile, change, expected):
    assert stale_after(package, change, profile) == expected


def test_module_of_the_numbered_folder_counts(tmp_path):
    (tmp_path / "helper.py").write_text("import other\n")
    (tmp_path / "other.py").write_text("x = 1\n")
    (tmp_path / "unused.py").write_text("x = 1\n")
    found = imported_files("from helper import x", tmp_path)
    assert {path.name for path in found} == {"helper.py", "other.py"}


def test_what_only_jupyter_knows_is_no_code_to_parse(tmp_path):
    (tmp_path / "helper.py").write_text("x = 1\n")
    assert imported_files("%matplotlib inline\n!ls\nimport helper", tmp_path) == {tmp_path / "helper.py"}
    assert imported_files("this is no code", tmp_path) == set()


def test_settings_count_and_threads_do_not(profile):
    path = NOTEBOOKS["1_preference_data"]
    key = key_of(path, profile)
    assert key_of(path, dataclasses.replace(profile, threads=7)) == key
    assert key_of(path, dataclasses.replace(profile, seed=7)) != key
    assert key_of(path, dataclasses.replace(profile, reward=dataclasses.replace(profile.reward, batch_size=9))) != key


def test_data_count_by_their_contents_and_not_by_their_time_or_place(tmp_path, monkeypatch):
    path, data = NOTEBOOKS["1_preference_data"], tmp_path / "pairs.jsonl"
    data.write_text("one\n")
    profile = dataclasses.replace(load_profile("gpt2"), dataset=str(data))
    key = key_of(path, profile)
    os.utime(data, (1, 1))
    assert key_of(path, profile) == key
    moved = tmp_path / "elsewhere" / "pairs.jsonl"
    moved.parent.mkdir()
    shutil.copy(data, moved)
    assert key_of(path, dataclasses.replace(profile, dataset=str(moved))) == key
    data.write_text("two\n")
    assert key_of(path, profile) != key


def test_folder_counts_with_the_names_and_contents_of_all_its_files(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a.json").write_text("1")
    first = content_of(str(tmp_path / "model"))
    (tmp_path / "model" / "a.json").rename(tmp_path / "model" / "b.json")
    second = content_of(str(tmp_path / "model"))
    (tmp_path / "model" / "b.json").write_text("2")
    assert len({first, second, content_of(str(tmp_path / "model")), content_of("openai-community/gpt2")}) == 4


def test_code_counts_and_prose_does_not(tmp_path, profile):
    path = tmp_path / "1_x.ipynb"
    keys = []
    for code, prose in (("x = 1", "a"), ("x = 1", "b"), ("x = 2", "b")):
        nbformat.write(new_notebook(cells=[nbformat.v4.new_markdown_cell(prose), new_code_cell(code)]), path)
        keys.append(key_of(path, profile))
    assert keys[0] == keys[1] != keys[2]
