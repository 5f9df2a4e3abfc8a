"""The results in README.md are those in results/, and a run's own table never touches them."""

import dataclasses

from rlhf import outputs, report
from rlhf.profiles import load_profile

import pytest
from conftest import stage_module


@pytest.fixture
def lab():
    return load_profile("lab")


def readme() -> str:
    return (outputs.ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_shows_the_committed_results_whatever_a_run_wrote(monkeypatch, tmp_path, lab):
    monkeypatch.setenv("RLHF_OUTPUTS", str(tmp_path / "outputs"))  # of another machine, or none at all
    for profile in (lab, load_profile("sentiment")):
        assert report.replaced(readme(), profile) == readme(), "run `make render`"
    assert stage_module("scripts/results_table.py")["main"](["--check"]) == 0


def test_a_changed_number_in_the_readme_is_noticed(lab):
    begin = "<!-- results: begin -->"
    before, table = readme().split(begin)
    changed = before + begin + table.replace(".", ",", 1)
    assert report.replaced(changed, lab) == readme()


def test_readme_without_its_markers_is_refused(lab):
    with pytest.raises(ValueError, match="markers"):
        report.replaced("no table here", lab)


def test_run_without_a_known_peak_of_memory_has_a_table_too(monkeypatch, lab):
    """A system without /proc does not tell it."""
    read = outputs.read_json

    def without(*args):
        run = read(*args)
        del run["peak_memory_mb"]
        return run

    monkeypatch.setattr(outputs, "read_json", without)
    text = report.results(lab, outputs.REFERENCE)
    assert "The run took" in text and "MB of memory" not in text


def test_table_of_a_run_that_has_not_finished_says_what_to_do(profile, capsys, monkeypatch):
    monkeypatch.setenv("RLHF_PROFILE", "smoke")
    assert stage_module("scripts/results_table.py")["main"]([]) == 2
    assert "is missing; run the notebook that writes it first (make run)" in capsys.readouterr().err


def test_run_on_real_data_has_a_table_without_gold_scores(lab):
    text = report.results(dataclasses.replace(lab, lab=None), outputs.REFERENCE)
    header = next(line for line in text.splitlines() if line.startswith("| model | ROUGE-1"))
    assert header.endswith("| ends by itself | reward | KL from SFT |")
    assert "PPO (TRL), reward |" in text and ", gold |" not in text
