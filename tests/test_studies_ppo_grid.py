"""The search over PPO's settings: its rule, and what it resumes."""

import itertools
import math

from rlhf import outputs
from rlhf.data import load_preferences
from rlhf.profiles import load_profile
from rlhf.studies import ppo_grid

import numpy as np
import pandas as pd
import pytest
from conftest import ppo_settings
from small_study import small_proxy, small_study


def table(*rows):
    return pd.DataFrame(rows, columns=["trainer", "learning_rate", "reward", "kl"])


def test_highest_reward_within_the_budget_is_chosen_for_each_trainer():
    most = ppo_grid.KL_BUDGET
    rows = table(
        ("scratch", 1e-4, 0.5, most / 2), ("scratch", 2e-4, 0.7, most), ("scratch", 4e-4, 0.9, most + 0.1),
        ("trl", 1e-4, 0.8, 1.0), ("trl", 2e-4, 0.6, 1.0),
    )  # fmt: skip
    assert ppo_grid.chosen(rows, "scratch").learning_rate == 2e-4
    assert ppo_grid.chosen(rows, "trl").learning_rate == 1e-4


def test_a_grid_that_always_goes_too_far_is_refused():
    with pytest.raises(ValueError, match=r"no run of trl .* search lower learning rates"):
        ppo_grid.chosen(table(("trl", 1e-4, 0.5, 100.0), ("scratch", 1e-4, 0.5, 1.0)), "trl")


def test_every_run_that_is_missing_is_made_once_and_the_chosen_rows_are_marked(profile, monkeypatch):
    made = []

    def measure(study, proxy, trainer, changes):
        made.append((trainer, *changes.values()))
        return {"reward": changes["learning_rate"], "kl": 1.0}

    monkeypatch.setattr(ppo_grid, "Study", lambda profile, split: split)
    monkeypatch.setattr(ppo_grid, "Proxy", lambda study, which: which)
    monkeypatch.setattr(ppo_grid, "measure", measure)
    found = ppo_grid.run(profile)
    assert made == [
        (t, *v) for t, v in itertools.product(ppo_grid.TRAINERS, itertools.product(*ppo_grid.GRID.values()))
    ]
    assert found.groupby("trainer").chosen.sum().to_dict() == {"scratch": 1, "trl": 1}
    assert (found[found.chosen].learning_rate == max(ppo_grid.GRID["learning_rate"])).all()
    outputs.write_csv(profile, ppo_grid.FILE, found.drop(index=[1, 5]))
    again, count = ppo_grid.run(profile), len(made)
    assert made[-2:] == [made[1], made[5]] and len(again) == len(found)
    ppo_grid.run(profile)
    assert len(made) == count


@pytest.mark.parametrize("trainer", ppo_grid.TRAINERS)
def test_settings_of_the_lab_are_those_that_the_committed_search_chose(trainer):
    table = pd.read_csv(outputs.REFERENCE / "evaluation" / "lab" / ppo_grid.FILE)
    assert len(table) == len(ppo_grid.TRAINERS) * math.prod(map(len, ppo_grid.GRID.values()))
    row = ppo_grid.chosen(table, trainer)
    assert row.chosen and table[table.trainer == trainer].chosen.sum() == 1
    settings = ppo_settings(load_profile("lab"), trainer)
    assert {name: getattr(settings, name) for name in ppo_grid.GRID} == row[list(ppo_grid.GRID)].to_dict()


@pytest.mark.parametrize("trainer", ppo_grid.TRAINERS)
def test_a_run_of_the_grid_is_measured_on_validation_prompts(profile_with_sft, monkeypatch, trainer):
    study = small_study(profile_with_sft, "validation")
    asked = load_preferences(profile_with_sft)["validation"]["prompt"]
    assert study.prompts == list(asked)[: len(study.prompts)]
    row = ppo_grid.measure(study, small_proxy(study, monkeypatch), trainer, {"learning_rate": 1e-3, "epochs": 2})
    assert all(np.isfinite(row[name]) for name in row.keys() - {"explained_variance"})
    assert row["ci_low"] <= row["reward"] <= row["ci_high"] and row["kl"] != 0
    assert 0 <= row["stop_rate"] <= 1 and 0 <= row["clip_fraction"] <= 1
    assert np.isnan(row["explained_variance"]) == (trainer == "trl")
