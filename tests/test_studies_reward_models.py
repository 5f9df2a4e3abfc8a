"""Studies of reward models: what each trains, and what it measures of answers whose worth is known."""

from rlhf import models
from rlhf.generation import Answer
from rlhf.studies import common, reward_models

import numpy as np
import pandas as pd
import pytest
from small_study import small_proxy, small_study


@pytest.fixture
def study(profile_with_sft):
    return small_study(profile_with_sft)


def test_each_part_of_the_pairs_has_a_model_and_its_accuracy_by_kind_of_error(study, monkeypatch):
    proxy = small_proxy(study, monkeypatch)
    trained = {}
    monkeypatch.setattr(study, "train_reward_model", lambda name, pairs: trained.update({name: len(pairs)}))
    table = reward_models.data_size(study)["data_size.csv"]
    assert trained == {name: round(share * 140) for name, share in common.SHARES.items()}
    assert list(table.columns) == ["pairs", "share", "slice", "accuracy", "ci_low", "ci_high", "n"]
    assert table.share.unique().tolist() == [1 / 8, 1 / 4, 1 / 2, 1.0]
    assert table.query("share == 1").pairs.unique() == [140]
    assert set(table.slice) == {"all", *study.error_kinds}
    overall = table.query("slice == 'all'")
    assert overall.accuracy.tolist() == pytest.approx([proxy.correct().mean()] * 4)  # the same model each time
    kind = study.error_kinds[0]
    expected = proxy.correct()[study.error_kinds == kind].mean()
    np.testing.assert_allclose(table[table.slice == kind].accuracy, expected)


@pytest.fixture
def unchanged(study, monkeypatch):
    """A study whose policies are all SFT, as if PPO changed nothing."""
    small_proxy(study, monkeypatch)
    monkeypatch.setattr(study, "train_policy", lambda proxy: study.sft)
    monkeypatch.setattr(models, "load_policy", lambda profile, key: {"ppo_scratch": study.sft}[key])
    return study


def relevance_of(study, monkeypatch):
    trained = {}
    monkeypatch.setattr(study, "train_reward_model", lambda name, pairs, **changes: trained.update({name: changes}))
    return reward_models.relevance(study)["relevance.csv"], trained


def test_blind_model_has_not_had_the_pairs_that_only_the_prompt_decides(unchanged, monkeypatch):
    table, trained = relevance_of(unchanged, monkeypatch)
    assert trained == {"blind": {"mismatched_first": 0.0}}
    assert list(table.columns) == ["reward_model", "metric", "mean", "ci_low", "ci_high", "n"]
    assert table.reward_model.unique().tolist() == ["blind", "seeing"]


def test_policy_that_did_not_change_has_changed_nothing(unchanged, monkeypatch):
    table, _ = relevance_of(unchanged, monkeypatch)
    for metric in ("reward", "gold", "relevance"):
        rows = table[table.metric == metric]
        assert rows["mean"].tolist() == pytest.approx([0, 0], abs=1e-6) and (rows.n == len(unchanged.prompts)).all()


def test_accuracy_is_also_that_on_the_kinds_of_error_that_only_the_prompt_shows(unchanged, monkeypatch):
    unchanged.error_kinds[:] = "cut_off"
    unchanged.error_kinds[:2] = "off_topic"
    table, _ = relevance_of(unchanged, monkeypatch)
    counts = table.drop_duplicates("metric").set_index("metric").n
    assert counts["accuracy off_topic"] == 2 and counts["accuracy"] == len(unchanged.error_kinds)
    assert not {"accuracy wrong_object", "accuracy wrong_action"} & set(counts.index)  # there are none


def test_without_a_gold_score_the_reward_alone_is_measured(unchanged, monkeypatch):
    monkeypatch.setattr(reward_models, "gold_table", lambda *_: pd.DataFrame())
    table, _ = relevance_of(unchanged, monkeypatch)
    assert "reward" in set(table.metric) and not {"gold", "relevance"} & set(table.metric)


def gains_of(study, monkeypatch):
    trained = {}
    monkeypatch.setattr(study, "train_reward_model", lambda name, pairs, **changes: trained.update({name: changes}))
    return reward_models.gains(study)["reward_model_gains.csv"], trained


def test_gains_continue_the_table_of_relevance(unchanged, monkeypatch):
    relevance, _ = relevance_of(unchanged, monkeypatch)
    table, trained = gains_of(unchanged, monkeypatch)
    assert trained == {"blind": {"mismatched_first": 0.0}} | {name: {} for name in common.SHARES}
    assert list(table.columns) == list(relevance.columns)
    measured = table.groupby("reward_model", sort=False).metric.agg(set)
    assert measured["blind"] == measured["seeing"] == {"accuracy sampled"}
    of_relevance = set(relevance.metric) | {"accuracy sampled"}
    assert all(measured[name] == of_relevance for name in common.SHARES)
    assert table["mean"][table.metric == "gold"].tolist() == pytest.approx([0] * 3)


SIZES = pd.DataFrame(
    [(seed, share, kind, share / 2 + 0.4) for seed in (0, 1) for share in (1 / 4, 1) for kind in ("all", "off_topic")],
    columns=["seed", "share", "slice", "accuracy"],
)
RELEVANCE = pd.DataFrame(
    [
        (seed, model, metric, value)
        for seed in (0, 1)
        for model, level in (("blind", 0.6), ("seeing", 0.9))
        for metric, value in (("accuracy", level), ("accuracy off_topic", level), ("gold", level + seed), ("reward", 9))
    ],
    columns=["seed", "reward_model", "metric", "mean"],
)
CURVES = pd.DataFrame(
    [(0, *way, x, 5 - x) for way in (("ppo", "kl_coef 0, 1/4 of pairs"), ("best_of_n", "all pairs")) for x in (8, 1)],
    columns=["seed", "method", "setting", "x", "gold"],
)


def test_each_gain_stands_beside_the_accuracies_of_its_reward_model():
    rows = reward_models.accuracy_and_gain(SIZES, RELEVANCE, CURVES).set_index(["optimised", "seed", "reward_model"])
    assert len(rows) == 4 + 2
    assert rows.loc[("PPO as in the run", 1, "blind")].tolist() == [1.6, 0.6, 0.6]
    pushed = rows.loc[("PPO pushed, kl_coef 0", 0, "quarter")]  # from the first point to the last, whatever their order
    assert pushed.tolist() == [-7, pytest.approx(0.525), pytest.approx(0.525)]
    assert rows.loc[("best of 8", 0, "seeing")].gold == -7


def test_further_reward_models_take_part_once_their_gains_are_measured():
    more = pd.DataFrame({"seed": 0, "reward_model": "eighth", "metric": ["accuracy", "gold"], "mean": [0.5, 0.1]})
    more.loc[2] = (0, "seeing", "accuracy sampled", 0.7)
    rows = reward_models.accuracy_and_gain(SIZES, pd.concat([RELEVANCE, more]), CURVES)
    run = rows[rows.optimised == "PPO as in the run"]
    assert len(run) == 5 and run[run.reward_model == "eighth"].accuracy.item() == 0.5
    assert run["accuracy sampled"].dropna().tolist() == [0.7]


def test_without_gold_there_is_nothing_to_compare():
    unknown = RELEVANCE[RELEVANCE.metric != "gold"]
    assert reward_models.accuracy_and_gain(SIZES, unknown, CURVES.assign(gold=np.nan)).empty


def test_rank_correlation_is_that_of_each_accuracy_with_its_honest_number():
    rows = [("a", seed, f"m{i}", i + seed / 9, i / 10, -i / 10 if i else np.nan) for i in range(5) for seed in (0, 1)]
    points = pd.DataFrame(rows, columns=["optimised", "seed", "reward_model", "gold", "accuracy", "accuracy sampled"])
    table = reward_models.correlations(pd.concat([points, points.head(2).assign(optimised="two points")]))
    assert table.optimised.tolist() == ["a", "a"] and table.accuracy.tolist() == ["accuracy", "accuracy sampled"]
    assert table[["n", "reward_models", "seeds"]].to_numpy().tolist() == [[10, 5, 2], [8, 4, 2]]
    assert table.correlation[0] > 0.95 and table.correlation[1] < -0.95
    assert (table.ci_low <= table.correlation).all() and (table.correlation <= table.ci_high).all()


def test_interval_of_a_rank_correlation_of_few_points_is_wide():
    points = pd.DataFrame({"optimised": "a", "seed": range(6), "reward_model": "m", "gold": [0, 1, 2, 3, 5, 4]})
    (row,) = reward_models.correlations(points.assign(accuracy=[0, 0, 0, 0, 0, 1])).itertuples()
    assert row.ci_low < 0 < row.correlation < row.ci_high < 1  # only one accuracy differs
    (row,) = reward_models.correlations(points.assign(accuracy=range(6))).itertuples()
    z = np.arctanh(33 / 35) - 1.96 * np.sqrt((1 + (33 / 35) ** 2 / 2) / 3)  # one exchange of two neighbours
    assert (row.correlation, row.ci_low) == pytest.approx((33 / 35, np.tanh(z)))


SFT, POLICIES = [0.0] * 4, {"base": [-1.0] * 4, "ppo": [1.0, 1.0, 1.0, -1.0]}


class JudgedStudy:
    """Answers whose texts are their scores; gold as given, NaN where it is not known."""

    def __init__(self, gold):
        self.profile, self.gold, self.trained = "a profile", gold, False
        self.sft_answers = self.answer(SFT)

    def answer(self, policy):
        return [Answer(str(value), (), True) for value in policy]

    def train_halves(self):
        self.trained = True

    def train_policy(self, proxy):
        assert proxy.which == "half"
        return [2.0] * 4


class KnownProxy:
    """The proxy likes what scores high; the judge likes every second answer less."""

    def __init__(self, study, which):
        assert study.trained
        self.which = which

    def __call__(self, answers):
        scores = np.array([float(answer.text) for answer in answers])
        return scores if self.which == "half" else scores * [1, -1, 1, -1]


def judge_of(monkeypatch, gold) -> pd.DataFrame:
    monkeypatch.setattr(reward_models, "Proxy", KnownProxy)
    monkeypatch.setattr(models, "load_policy", lambda profile, key: POLICIES.get(key, SFT))
    table = reward_models.judge(JudgedStudy(gold))["judge.csv"]
    assert list(table.columns) == ["model", "metric", "mean", "ci_low", "ci_high", "n"]
    return table.pivot(index="model", columns="metric", values="mean")


def test_win_rates_are_against_sft_by_each_scorer(monkeypatch):
    rates = judge_of(monkeypatch, lambda answers: np.array([float(answer.text) for answer in answers]))
    assert set(rates.index) == {"base", "sft_qlora", "ppo", "ppo_scratch", "ppo_half"}
    assert rates.win_by_proxy.to_dict() == {"base": 0, "ppo": 0.75, "ppo_half": 1, "ppo_scratch": 0.5, "sft_qlora": 0.5}
    assert rates.win_by_judge["ppo_half"] == 0.5 and rates.win_by_judge["ppo"] == 0.75
    assert rates.win_by_gold["ppo"] == 0.75


def test_agreement_is_counted_where_gold_prefers_one_of_the_two(monkeypatch):
    def gold(answers):
        return np.array([float(answer.text) for answer in answers]) * [1, 1, 1, 0]

    rates = judge_of(monkeypatch, gold)
    assert rates.proxy_agrees["ppo"] == 1
    assert rates.judge_agrees["ppo"] == pytest.approx(2 / 3)
    assert np.isnan(rates.judge_agrees["sft_qlora"])  # gold prefers none of its answers


def test_without_a_gold_score_there_are_proxy_and_judge_alone(monkeypatch):
    rates = judge_of(monkeypatch, lambda answers: np.full(len(answers), np.nan))
    assert set(rates.columns) == {"win_by_proxy", "win_by_judge"}
