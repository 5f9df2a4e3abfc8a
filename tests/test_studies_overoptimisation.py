"""Curves, turning points and the frontier: of answers whose worth is known."""

from rlhf import metrics, outputs
from rlhf.studies import overoptimisation

import numpy as np
import pandas as pd
import pytest


def curve(method, setting, x, kl, scores):
    return pd.DataFrame({"method": method, "setting": setting, "x": x, "kl": kl}), scores


def turns_of(curve):
    return overoptimisation.turning_points(*curve).set_index("by")


def scorers_of(study, proxy):
    return {"proxy": proxy, "judge": proxy, "gold": study.gold}


def test_curve_of_a_policy_starts_at_sft_without_any_distance(study, proxy):
    made = overoptimisation.policy_curve(study, scorers_of(study, proxy), kl_coef_factor=1.0, setting="a setting")
    table = overoptimisation.curve_table(*made, gold_unit=2.0)
    assert table.x.tolist() == list(range(study.settings.updates + 1))
    start = table.iloc[0]
    assert start.kl == pytest.approx(0, abs=1e-5) and start.proxy == pytest.approx(0, abs=1e-5)
    assert start.gold == pytest.approx(study.gold(study.sft_answers).mean())
    np.testing.assert_allclose(table.proxy, table.judge)  # the same model twice
    assert table.kl.iloc[-1] != 0


def test_ppo_is_pushed_by_a_higher_rate(study, proxy, monkeypatch):
    asked = {}
    monkeypatch.setattr(type(study), "ppo_trainer", lambda self, proxy, **changes: asked.update(changes) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        overoptimisation.policy_curve(study, scorers_of(study, proxy), kl_coef_factor=3.0, setting="a setting")
    assert asked == {"kl_coef": 3 * study.settings.kl_coef, "learning_rate": 4 * study.settings.learning_rate}


def test_row_of_a_curve_has_the_means_over_prompts_with_their_intervals():
    scores = {name: np.arange(12.0).reshape(2, 6) + i for i, name in enumerate(("proxy", "judge", "gold"))}
    table = overoptimisation.curve_table(*curve("ppo", "a setting", [0, 4], [0.0, 1.5], scores), gold_unit=2.5)
    assert list(table.columns) == list(pd.read_csv(committed("overoptimisation.csv")).columns[1:])
    row = table.iloc[1]
    assert (row.method, row.setting, row.x, row.kl, row.gold_unit, row.n) == ("ppo", "a setting", 4, 1.5, 2.5, 6)
    assert (row.proxy, row.proxy_ci_low, row.proxy_ci_high) == metrics.bootstrap_interval(np.arange(6.0, 12.0))
    assert (row.judge, row.gold) == (9.5, 10.5)


def committed(name):
    return outputs.REFERENCE / "evaluation" / "lab" / name


def test_turn_of_gold_and_of_the_judge_is_found_where_it_is():
    noise = np.random.default_rng(0).normal(scale=0.1, size=(3, 4, 40))
    means = {"proxy": (0, 1, 2, 3), "judge": (0, 1, 2, 3), "gold": (0, 1, 0.5, -1)}
    scores = {name: np.array(by)[:, None] + noise[i] for i, (name, by) in enumerate(means.items())}
    found = turns_of(curve("ppo", "kl_coef 0, all pairs", [0, 10, 20, 30], [0.0, 1.0, 2.0, 3.0], scores))
    assert (found.peak_x["gold"], found.end_x["gold"], found.found["gold"]) == (10, 30, True)
    assert not found.found["judge"]  # it rises with the proxy to the end
    assert (found.n == 20).all()


def test_without_gold_the_turn_is_looked_for_by_the_judge_alone():
    rising = np.arange(16.0).reshape(2, 8)
    scores = {"proxy": rising, "judge": rising, "gold": np.full((2, 8), np.nan)}
    assert list(turns_of(curve("ppo", "a setting", [0, 1], [0.0, 0.0], scores)).index) == ["judge"]


def test_curve_without_a_judge_has_neither_its_column_nor_its_turn():
    scores = {name: np.arange(12.0).reshape(2, 6) for name in ("proxy", "gold")}
    made = curve("ppo", "a setting", [0, 4], [0.0, 1.5], scores)
    assert "judge" not in overoptimisation.curve_table(*made, gold_unit=2.5)
    assert list(turns_of(made).index) == ["gold"]


def test_curve_of_best_of_n_runs_from_the_mean_answer_to_the_highest():
    random = np.random.default_rng(0)
    proxy, judge, gold = random.normal(size=(3, 5, overoptimisation.CANDIDATES))
    by = {"proxy": proxy, "judge": judge, "gold": gold}
    points, scores = overoptimisation.best_of_n_curve(by, "all pairs")
    assert (points.x.iloc[0], points.x.iloc[-1]) == (1, 64) and points.kl[0] == 0
    assert points.kl.iloc[-1] == metrics.best_of_n_kl(64)
    np.testing.assert_allclose(scores["gold"][0], gold.mean(axis=1))
    np.testing.assert_allclose(scores["proxy"][-1], proxy.max(axis=1))
    highest = proxy.argmax(axis=1)
    np.testing.assert_allclose(scores["judge"][-1], judge[range(5), highest])


def test_best_of_n_in_the_frontier_takes_the_first_n_and_the_formulas_kl(study, proxy, monkeypatch):
    monkeypatch.setattr(outputs, "read_csv", lambda *_: pd.DataFrame(columns=metrics.SUMMARY_COLUMNS))
    asked = len(study.prompts[: overoptimisation.ASKED])
    candidates = study.sft_answers * overoptimisation.CANDIDATES
    scores = np.tile(np.arange(overoptimisation.CANDIDATES, dtype=float), (asked, 1))
    table = overoptimisation.frontier(study, proxy, candidates[: scores.size], scores)
    means = table.pivot(index="model", columns="metric", values="mean")
    assert means.reward.to_dict() == {"best of 4": 3, "best of 16": 15, "best of 64": 63}
    assert means.kl_from_sft["best of 16"] == pytest.approx(metrics.best_of_n_kl(16))


def test_frontier_gives_the_evaluated_rewards_in_deviations_of_sft(study, proxy):
    for name, measured in overoptimisation.EVALUATED.items():
        rows = [("ppo", m, 5.0, 4.0, 6.0, 8) for m in (*measured, "another")]
        outputs.merge_csv(study.profile, name, pd.DataFrame(rows, columns=metrics.SUMMARY_COLUMNS), key="metric")
    candidates = study.sft_answers * overoptimisation.CANDIDATES
    scores = np.zeros((len(study.prompts), overoptimisation.CANDIDATES))
    table = overoptimisation.frontier(study, proxy, candidates, scores).query("model == 'ppo'").set_index("metric")
    assert set(table.index) == {metric for measured in overoptimisation.EVALUATED.values() for metric in measured}
    assert table["mean"]["reward"] == pytest.approx(5 / proxy.deviation - proxy.level)
    assert table["mean"]["gold"] == 5
