"""Every recipe runs to its end at the smoke profile, writes what it says, and takes up its parts."""

import re
import shutil
import subprocess
import sys

from rlhf import outputs

import pandas as pd
import pytest
from conftest import run_script

WRITES = {
    "sentiment": [
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
    ]
}


def place(folder, name):
    kind, rest = name.split("/")
    return folder / kind / "sentiment_smoke" / rest


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe") / "outputs"
    run_script(folder, "run_recipe.py", "sentiment")
    return folder


def test_every_recipe_says_here_what_it_writes():
    assert sorted(WRITES) == sorted(path.stem for path in (outputs.ROOT / "recipes").glob("*.ipynb"))


@pytest.mark.slow
def test_recipe_writes_its_files(run):
    assert [name for name in WRITES["sentiment"] if not place(run, name).exists()] == []
    measures = pd.read_csv(place(run, "evaluation/measures.csv"))
    assert set(measures.model) == {"base", "sft_full", *(f"ppo_seed_{seed}" for seed in range(3)), "ppo_collapsed"}
    assert measures["mean"].between(measures.ci_low, measures.ci_high).all() and (measures.n == 16).all()


@pytest.mark.slow
def test_finished_recipe_does_nothing_and_a_stopped_one_goes_on(run):
    assert "have finished" in run_script(run, "run_recipe.py", "sentiment")
    before = {name: place(run, f"evaluation/{name}.csv").read_bytes() for name in ("measures", "paired", "ppo_curve")}
    shutil.rmtree(run / "notebooks")
    shutil.rmtree(place(run, "checkpoints/ppo_seed_1"))  # it was stopped in this part
    run_script(run, "run_recipe.py", "sentiment")
    executed = (run / "notebooks/sentiment_smoke/recipes/sentiment.ipynb").read_text()
    taken_up = set(re.findall(r'"(\w+): taken up', executed))
    assert {"sft_full_final", "ppo_seed_0", "written_ppo_seed_1"} <= taken_up and "ppo_seed_1" not in taken_up
    assert before == {name: place(run, f"evaluation/{name}.csv").read_bytes() for name in before}


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
