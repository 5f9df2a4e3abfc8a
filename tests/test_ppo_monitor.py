"""The monitor of collapse: measures by hand, silence on a good run, one line for each measure that leaves its range."""

import dataclasses

from rlhf.ppo import monitor

import numpy as np
import pandas as pd
import pytest
import torch
from ppo_stage import SETTINGS, make


def test_variety_is_that_of_the_tokens_up_to_the_end_of_each_answer():
    responses = torch.tensor([[1, 2, 1, 2, 1, 2], [1, 2, 3, 9, 9, 9], [7, 9, 9, 9, 9, 9]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]])
    # Pairs: 12 21 12 21 12, 12 23: three of seven. Runs of three: 121 212 121 212, two of four again; 123, none.
    assert monitor.variety(responses, mask) == {"distinct_2": pytest.approx(3 / 7), "repetition": pytest.approx(0.25)}
    nothing = torch.zeros(2, 3, dtype=torch.long)
    assert monitor.variety(nothing, nothing) == {"distinct_2": 0.0, "repetition": 0.0}


def test_update_at_which_values_have_been_outside_often_enough_in_a_row():
    values = pd.Series([1.0, 5, 5, 1, 5, 5, 5, 5])
    assert monitor.first_outside(values, 0, 2) == 7  # the first two are too few in a row
    assert monitor.first_outside(values, 0, 5) is None and monitor.first_outside(values[:6], 0, 2) is None
    assert monitor.first_outside(values, pd.Series([2.0] * 4 + [9] * 4), pd.Series([9.0] * 8)) == 6  # low counts too
    assert monitor.first_outside(pd.Series([np.nan] * 5), 0, 2) is None


def test_band_is_the_range_of_the_good_runs_widened_by_its_mean_width():
    runs = pd.DataFrame({"update": [1, 2, 1, 2], "kl": [0.0, 4.0, 1.0, 7.0]})  # 0 to 1, then 4 to 7: 2 wide on average
    low, high = monitor.band(runs, "kl")
    assert (low.tolist(), high.tolist()) == ([-2, 2], [3, 9]) and low.index.tolist() == [1, 2]


def good(updates: int = 20) -> pd.DataFrame:
    fall = np.linspace(1, 0.8, updates)
    return pd.DataFrame(
        {"entropy": 2 * fall, "distinct_2": 0.8 * fall, "reward_std": fall, "repetition": 0.05 + 0.1 * (1 - fall)}
    )


@pytest.mark.parametrize(
    ("name", "value"), [("entropy", 0.9), ("distinct_2", 0.39), ("reward_std", 0.3), ("repetition", 0.21)]
)
def test_measure_that_stays_out_of_its_range_is_named_with_its_update(name, value):
    curve = good()
    curve.loc[12:, name] = value
    assert monitor.warnings(curve.iloc[:14]) == []  # two updates may be noise
    (line,) = monitor.warnings(curve.iloc[:15])
    assert line.startswith(f"update 15: {name} went from {curve[name][0]:.2f} to {value:.2f}: ")
    assert monitor.report(curve) == line


def test_good_run_noise_and_what_is_not_measured_give_no_warning():
    assert monitor.warnings([]) == [] == monitor.warnings(good())
    noisy = good()
    noisy.loc[[5, 6, 9, 12, 13], "entropy"] = 0.1
    assert monitor.warnings(noisy) == []
    assert monitor.report(noisy.drop(columns="reward_std")).endswith("(entropy, distinct_2, repetition).")
    assert monitor.warnings(good().assign(reward_std=np.nan)) == []


def test_training_without_leash_is_warned_of_while_it_collapses_and_a_careful_run_is_not(stage, capsys):
    """A hot rate and no KL term: one way of answering takes over."""
    hot = dataclasses.replace(SETTINGS, updates=14, learning_rate=3e-2, kl_coef=0.0, epochs=4)
    curve = make(stage, hot).train()
    printed = capsys.readouterr()
    lines = monitor.warnings(curve)
    assert lines and all(f"Warning: {line}" in printed.out + printed.err for line in lines)
    calm = dataclasses.replace(SETTINGS, updates=6, learning_rate=1e-5, kl_coef=0.5)
    assert monitor.warnings(make(stage, calm).train()) == []
