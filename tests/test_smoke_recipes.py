"""Every recipe runs to its end at the smoke profile, writes what it says, and takes up its parts."""

import json
import re
import shutil
import subprocess
import sys
from typing import NamedTuple

from rlhf import outputs, report
from rlhf.profiles import load_profile

import pandas as pd
import pytest
from conftest import run_script


class Recipe(NamedTuple):
    writes: list[str]
    models: set[str]  # in measures.csv
    stopped: str  # a part that is trained last
    taken_up: set[str]  # when that part is trained again


RECIPES = {
    "sentiment": Recipe(
        [
            "evaluation/sft_loss.csv",
            "evaluation/perplexity.csv",
            "evaluation/reward_model.csv",
            "evaluation/reward_calibration.csv",
            "evaluation/ppo_curve.csv",
            "evaluation/measures.csv",
            "evaluation/variety.csv",
            "evaluation/paired.csv",
            "evaluation/shown.csv",
            "evaluation/freezing.csv",
            "evaluation/collapsed.csv",
            "evaluation/costs.csv",
            "evaluation/sentences.csv",
            "evaluation/run.json",
            "plots/sft_loss.png",
            "plots/reward_calibration.png",
            "plots/ppo_curves.png",
            "plots/paired.png",
            "plots/collapse.png",
            "checkpoints/sft_full_final",
            "checkpoints/reward_model_final",
            "checkpoints/ppo_seed_0",
        ],
        {"base", "sft_full", *(f"ppo_seed_{seed}" for seed in range(3)), "ppo_collapsed"},
        "ppo_seed_1",
        {"sft_full_final", "ppo_seed_0", "written_ppo_seed_1"},
    ),
    "alpaca": Recipe(
        [
            "evaluation/sft_loss.csv",
            "evaluation/accepted_data.jsonl",
            "evaluation/rejected_data.jsonl",
            "evaluation/reward_probes.csv",
            "evaluation/shuffled_prompts.csv",
            "evaluation/ppo_curve.csv",
            "evaluation/measures.csv",
            "evaluation/answers.csv",
            "evaluation/paired.csv",
            "evaluation/shown.csv",
            "evaluation/worse.csv",
            "evaluation/costs.csv",
            "evaluation/run.json",
            "plots/sft_loss.png",
            "plots/reward_probes.png",
            "plots/ppo_curves.png",
            "plots/paired.png",
            "checkpoints/sft_full_final",
            "checkpoints/naive_reward",
            "checkpoints/reward_model_final",
            "checkpoints/ppo_aligned_final",
        ],
        {"base", "sft_full", "ppo_aligned"},
        "ppo_aligned_final",
        {"sft_full_final", "sft_full_final_at_1.5", "reward_model_final", "written_ppo_aligned_final"},
    ),
}


class Run(NamedTuple):
    name: str
    folder: object

    def place(self, name):
        kind, rest = name.split("/")
        return self.folder / kind / f"{self.name}_smoke" / rest


@pytest.fixture(scope="module", params=sorted(RECIPES))
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe") / "outputs"
    run_script(folder, "run_recipe.py", request.param)
    return Run(request.param, folder)


def test_every_recipe_says_here_what_it_writes():
    assert sorted(RECIPES) == sorted(path.stem for path in (outputs.ROOT / "recipes").glob("*.ipynb"))


@pytest.mark.slow
def test_recipe_writes_its_files(run):
    recipe = RECIPES[run.name]
    assert [name for name in recipe.writes if not run.place(name).exists()] == []
    measures = pd.read_csv(run.place("evaluation/measures.csv"))
    assert set(measures.model) == recipe.models
    assert measures["mean"].between(measures.ci_low, measures.ci_high).all() and (measures.n == 16).all()


@pytest.mark.slow
def test_recipe_has_a_table_for_the_readme(run):
    text = report.results(load_profile(f"{run.name}_smoke"), run.folder)
    assert "| PPO" in text and "All parts took" in text


@pytest.mark.slow
def test_finished_recipe_does_nothing_and_a_stopped_one_goes_on(run):
    assert "have finished" in run_script(run.folder, "run_recipe.py", run.name)
    recipe, tables = RECIPES[run.name], [f"evaluation/{name}.csv" for name in ("measures", "paired", "ppo_curve")]
    before = {table: run.place(table).read_bytes() for table in tables}
    shutil.rmtree(run.folder / "notebooks")
    shutil.rmtree(run.place(f"checkpoints/{recipe.stopped}"))  # it was stopped in this part
    run_script(run.folder, "run_recipe.py", run.name)
    executed = (run.folder / f"notebooks/{run.name}_smoke/recipes/{run.name}.ipynb").read_text()
    taken_up = set(re.findall(r'"([\w.]+): taken up', executed))
    assert recipe.taken_up <= taken_up and recipe.stopped not in taken_up
    assert before == {table: run.place(table).read_bytes() for table in tables}


@pytest.mark.slow
@pytest.mark.parametrize("run", ["alpaca"], indirect=True)
def test_accepted_and_rejected_answers_belong_together_line_by_line(run):
    accepted, rejected = (
        [json.loads(line) for line in run.place(f"evaluation/{name}_data.jsonl").read_text().splitlines()]
        for name in ("accepted", "rejected")
    )
    assert [row["instruction"] for row in accepted] == [row["instruction"] for row in rejected]
    assert {row["written_by"] for row in accepted} == {"data"} and {row["written_by"] for row in rejected} == {"base"}


@pytest.mark.parametrize(
    ("name", "variables", "message"),
    [
        ("cooking", {}, "no recipe 'cooking'; choose one of sentiment"),
        ("../x", {}, "no recipe '../x'"),
        ("sentiment", {"RLHF_PROFILE": "lab"}, "RLHF_PROFILE='lab': a recipe has its own settings"),
        ("sentiment", {"RLHF_DATASET": "x/y"}, "the data of this recipe is RLHF_SST2; unset RLHF_DATASET"),
        ("sentiment", {"RLHF_SST2": "./none"}, "RLHF_SST2='./none': no such file or folder"),
    ],
)
def test_recipe_that_cannot_start_says_why(tmp_path, monkeypatch, name, variables, message):
    monkeypatch.setenv("RLHF_OUTPUTS", str(tmp_path))
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    command = [sys.executable, outputs.ROOT / "scripts" / "run_recipe.py", name]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr


def test_make_run_refuses_the_profile_of_a_recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_OUTPUTS", str(tmp_path))
    monkeypatch.setenv("RLHF_PROFILE", "sentiment_smoke")
    done = subprocess.run([sys.executable, outputs.ROOT / "scripts/run_notebooks.py"], capture_output=True, text=True)
    assert done.returncode == 2 and "make recipe NAME=sentiment" in done.stderr
