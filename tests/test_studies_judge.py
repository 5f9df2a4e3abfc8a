"""Win rates by a judge that was not trained on: whose answers, and what counts as agreement."""

from rlhf import models
from rlhf.generation import Answer
from rlhf.studies import judge

import numpy as np
import pandas as pd
import pytest

SFT, POLICIES = [0.0] * 4, {"base": [-1.0] * 4, "ppo": [1.0, 1.0, 1.0, -1.0]}


class Study:
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


class Proxy:
    """The proxy likes what scores high; the judge likes every second answer less."""

    def __init__(self, study, which):
        assert study.trained
        self.which = which

    def __call__(self, answers):
        scores = np.array([float(answer.text) for answer in answers])
        return scores if self.which == "half" else scores * [1, -1, 1, -1]


def run(monkeypatch, gold) -> pd.DataFrame:
    monkeypatch.setattr(judge, "Proxy", Proxy)
    monkeypatch.setattr(models, "load_policy", lambda profile, key: POLICIES.get(key, SFT))
    table = judge.run(Study(gold))["judge.csv"]
    assert list(table.columns) == ["model", "metric", "mean", "ci_low", "ci_high", "n"]
    return table.pivot(index="model", columns="metric", values="mean")


def test_win_rates_are_against_sft_by_each_scorer(monkeypatch):
    rates = run(monkeypatch, lambda answers: np.array([float(answer.text) for answer in answers]))
    assert set(rates.index) == {"base", "sft_qlora", "ppo", "ppo_scratch", "ppo_half"}
    assert rates.win_by_proxy.to_dict() == {"base": 0, "ppo": 0.75, "ppo_half": 1, "ppo_scratch": 0.5, "sft_qlora": 0.5}
    assert rates.win_by_judge["ppo_half"] == 0.5 and rates.win_by_judge["ppo"] == 0.75
    assert rates.win_by_gold["ppo"] == 0.75


def test_agreement_is_counted_where_gold_prefers_one_of_the_two(monkeypatch):
    def gold(answers):
        return np.array([float(answer.text) for answer in answers]) * [1, 1, 1, 0]

    rates = run(monkeypatch, gold)
    assert rates.proxy_agrees["ppo"] == 1
    assert rates.judge_agrees["ppo"] == pytest.approx(2 / 3)
    assert np.isnan(rates.judge_agrees["sft_qlora"])  # gold prefers none of its answers


def test_without_a_gold_score_there_are_proxy_and_judge_alone(monkeypatch):
    rates = run(monkeypatch, lambda answers: np.full(len(answers), np.nan))
    assert set(rates.columns) == {"win_by_proxy", "win_by_judge"}
