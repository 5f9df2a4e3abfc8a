"""The figures of ensembles, laws and gains show the numbers of their frames."""

from rlhf import laws

import numpy as np
import pytest
from plot_examples import EXAMPLES, example, lines, panels

LABELS = {"single reward model", "mean of three", "worst case of three", "uncertainty-weighted"}


def test_ensembles_show_the_change_of_gold_in_deviations_by_distance():
    (frame,) = EXAMPLES["ensemble_curves"]
    gold = panels(example("ensemble_curves"))[1]
    assert set(lines(gold)) == LABELS
    rows = frame[(frame.method == "ppo") & (frame.setting == "single")]
    change = [(of.gold - of.gold.iloc[0]) / 2.2 for _, of in rows.groupby("seed")]
    np.testing.assert_allclose(lines(gold)["single reward model"], np.mean(change, axis=0))
    (thick,) = [line for line in gold.lines if line.get_label() == "single reward model"]
    np.testing.assert_allclose(thick.get_xdata(), np.sqrt(0.3) * np.arange(11))


def test_law_is_drawn_over_its_points_and_its_peak_as_far_as_was_measured():
    _, fits = EXAMPLES["laws"]
    axes = panels(example("laws"))[0]
    (row, *_) = fits.itertuples()
    curves = [line for line in axes.lines if len(line.get_xdata()) == 200]
    assert len(curves) == 3
    x, y = curves[0].get_data()
    np.testing.assert_allclose(y, laws.law("ppo", x, row.alpha, row.beta))
    assert x[-1] == pytest.approx(5.5)  # the distance of the last point
    bars = [line.get_xdata() for line in axes.lines if line.get_linewidth() == 4]
    np.testing.assert_allclose(bars, np.sqrt([[0.1, 0.9], [0.1, 0.9], [0.1, 5.5**2]]))


def test_every_point_of_accuracy_and_gain_is_in_the_panel_of_its_way():
    (frame,) = EXAMPLES["accuracy_and_gain"]
    first, *others = panels(example("accuracy_and_gain"))
    assert len(others) == 2
    rows = frame[(frame.optimised == "PPO as in the run") & (frame.reward_model == "blind")]
    assert lines(first)["blind reward model"].tolist() == rows.gold.tolist()
    assert "1/8 of pairs" in lines(first)
