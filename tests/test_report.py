"""The results in README.md are those in results/, and a run's own table never touches them."""

import dataclasses
import shutil

from rlhf import outputs, report
from rlhf.profiles import load_profile

import pandas as pd
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


def test_other_methods_have_a_row_each_with_the_gain_of_every_seed(lab, tmp_path):
    folder = outputs.evaluation_dir(lab, tmp_path)
    folder.mkdir(parents=True)
    assert report._beyond(lab, tmp_path) == []
    (folder / "beyond_frontier.csv").write_text(
        "seed,method,value,chosen,kl,gold,gold_ci_low,gold_ci_high,n\n"
        "0,best_of_n,2,False,0.2,0.3,0.2,0.4,150\n0,best_of_n,16,False,1.8,1.2,1.1,1.3,150\n"
        "0,dpo,0.1,True,1.25,0.5,0.4,0.6,450\n0,dpo,16,False,9,9,9,9,450\n"
        "1,best_of_n,16,False,1.8,1,0.9,1.1,150\n1,dpo,0.1,True,1.5,-0.2,-0.3,-0.1,450\n"
    )
    (folder / "beyond_given.csv").write_text("seed,method,answers,backward_tokens\n0,dpo,0,1200000\n1,dpo,0,1100000\n")
    said, _, header, _, *rows, _ = report._beyond(lab, tmp_path)
    assert "Best of 16: its choice among so many answers, over their mean, on 150 prompts." in said
    assert header == "| method | answers sampled | tokens trained on | seed 0 | seed 1 |"
    assert rows == [
        "| best of 16 of SFT |  |  | +1.20 [+1.10, +1.30], 1.8 | +1.00 [+0.90, +1.10], 1.8 |",
        "| DPO | 0 | 1,200,000 | +0.50 [+0.40, +0.60], 1.2 | -0.20 [-0.30, -0.10], 1.5 |",
    ]


def test_a_sentence_that_a_model_wrote_is_text_in_its_cell(tmp_path):
    profile = load_profile("sentiment")
    folder = shutil.copytree(
        outputs.evaluation_dir(profile, outputs.REFERENCE), outputs.evaluation_dir(profile, tmp_path)
    )
    shown = pd.read_csv(folder / "shown.csv")
    shown.loc[0, "PPO"] = "a | b\n<img src=x> *c* [d](e)"
    shown.to_csv(folder / "shown.csv", index=False)
    lines = report.results(profile, tmp_path).splitlines()
    assert sum(line.startswith(("| best", "| worst", "| median")) for line in lines) == 3
    (row,) = (line for line in lines if line.startswith("| best gain"))
    assert r"| a \| b \<img src=x\> \*c\* \[d\](e) | -" in row
