"""The fitted laws of over-optimisation: exact on curves that follow them, and honest about those that do not."""

from rlhf import laws, outputs

import numpy as np
import pandas as pd
import pytest

DISTANCE = np.array([0, 0.5, 1, 1.5, 2, 3])
PEAK_KL = {"best_of_n": (0.9 / 0.6) ** 2, "ppo": np.exp(2 * (0.9 / 0.3 - 1))}


def gold_of(method, alpha=0.9, beta=0.3, start=4.0):
    return start + np.append(0, laws.law(method, DISTANCE[1:], alpha, beta))


def fit(method, gold, error=0.0):
    return laws.fit(method, DISTANCE, gold, np.full(len(gold), error))


@pytest.mark.parametrize("method", laws.SHAPES)
def test_curve_that_follows_the_law_gives_it_back_with_its_peak(method):
    found = fit(method, gold_of(method))
    for name, value in {"alpha": 0.9, "beta": 0.3, "peak_kl": PEAK_KL[method], "residual": 0}.items():
        assert found[name] == pytest.approx(value, abs=1e-9)
        if name != "residual":
            assert found[f"{name}_low"] == pytest.approx(value) == found[f"{name}_high"]
    top = np.sqrt(found["peak_kl"])
    around = laws.law(method, top * np.array([0.98, 1, 1.02]), 0.9, 0.3)
    assert around.argmax() == 1


@pytest.mark.parametrize("method", laws.SHAPES)
def test_interval_covers_the_truth_and_widens_with_the_error(method):
    noise = np.random.default_rng(1).normal(size=(40, len(DISTANCE)))
    found = [fit(method, gold_of(method) + 0.05 * row, 0.05) for row in noise]
    covered = np.mean([of["beta_low"] <= 0.3 <= of["beta_high"] for of in found])
    assert covered > 0.85
    width, wider = (fit(method, gold_of(method), error) for error in (0.05, 0.1))
    ratio = (wider["beta_high"] - wider["beta_low"]) / (width["beta_high"] - width["beta_low"])
    assert ratio == pytest.approx(2, rel=1e-6)  # least squares is linear in what is fitted


@pytest.mark.parametrize("method", laws.SHAPES)
def test_curve_that_does_not_turn_has_no_peak(method):
    assert fit(method, gold_of(method, beta=-0.1))["peak_kl"] == np.inf
    unsure = fit(method, gold_of(method, beta=0.02), 0.3)
    assert unsure["peak_kl_high"] == np.inf > unsure["peak_kl_low"]


def test_curve_that_falls_from_its_start_has_its_peak_there():
    assert fit("best_of_n", gold_of("best_of_n", alpha=-0.2))["peak_kl"] == 0
    assert fit("ppo", gold_of("ppo", alpha=-0.9))["peak_kl"] == pytest.approx(np.exp(2 * (-3 - 1)))


def test_residual_is_what_the_law_leaves():
    away = np.array([0, 0.1, -0.2, 0.15, 0.0, -0.02])
    found = fit("ppo", gold_of("ppo") + away)
    left = (gold_of("ppo") + away)[1:] - 4 - laws.law("ppo", DISTANCE[1:], found["alpha"], found["beta"])
    assert found["residual"] == pytest.approx(np.sqrt((left**2).mean())) and found["residual"] > 0.05


def curves(method="ppo", unit=2.0, **changed):
    gold, half = unit * gold_of(method), 1.96 * 0.1
    table = pd.DataFrame({"method": method, "setting": "a", "seed": 3, "x": range(6), "kl": DISTANCE**2, "gold": gold})
    return table.assign(gold_ci_low=gold - half, gold_ci_high=gold + half, gold_unit=unit, **changed)


def test_a_row_says_what_was_measured_in_deviations_of_sft():
    (row,) = laws.fits(curves().iloc[::-1]).itertuples()  # the order of the rows plays no part
    assert (row.method, row.setting, row.seed, row.points) == ("ppo", "a", 3, 5)
    assert (row.alpha, row.beta) == pytest.approx((0.9, 0.3)) and row.error == pytest.approx(0.05 * np.sqrt(2))
    assert (row.first_kl, row.last_kl, row.best_kl) == (0.25, 9, 9)
    assert not row.peak_measured  # it lies beyond the last point
    (row,) = laws.fits(
        curves("best_of_n").assign(gold_ci_low=lambda t: t.gold, gold_ci_high=lambda t: t.gold)
    ).itertuples()
    assert row.peak_measured and row.best_kl == 2.25 == pytest.approx(row.peak_kl)


def test_points_that_can_not_be_fitted_are_left_out():
    table = curves()
    near = table.assign(kl=table.kl.where(table.x != 1, -1e-4))
    assert laws.fits(near).points.item() == 4
    assert laws.fits(table.head(3)).empty and laws.fits(curves(gold=np.nan)).empty


def test_committed_curves_are_fitted_one_by_one():
    table = pd.read_csv(outputs.REFERENCE / "evaluation" / "lab" / "overoptimisation.csv")
    found = laws.fits(table)
    assert len(found) == len(table.groupby(["method", "setting", "seed"]))
    assert (found.beta[found.method == "ppo"] > 0).all() and np.isfinite(found.residual).all()
