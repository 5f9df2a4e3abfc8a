"""A blind reward model beside the run's own: what is trained, and what is measured of PPO against each."""

from rlhf import models
from rlhf.studies import relevance

import pandas as pd
import pytest
from small_study import small_proxy, small_study


@pytest.fixture
def study(profile_with_sft, monkeypatch):
    study = small_study(profile_with_sft)
    small_proxy(study, monkeypatch)
    monkeypatch.setattr(study, "train_policy", lambda proxy: study.sft)  # a policy that PPO did not change
    monkeypatch.setattr(models, "load_policy", lambda profile, key: {"ppo_scratch": study.sft}[key])
    return study


def run(study, monkeypatch):
    trained = {}
    monkeypatch.setattr(study, "train_reward_model", lambda name, pairs, **changes: trained.update({name: changes}))
    return relevance.run(study)["relevance.csv"], trained


def test_blind_model_has_not_had_the_pairs_that_only_the_prompt_decides(study, monkeypatch):
    table, trained = run(study, monkeypatch)
    assert trained == {"blind": {"mismatched_first": 0.0}}
    assert list(table.columns) == ["reward_model", "metric", "mean", "ci_low", "ci_high", "n"]
    assert table.reward_model.unique().tolist() == ["blind", "seeing"]


def test_policy_that_did_not_change_has_changed_nothing(study, monkeypatch):
    table, _ = run(study, monkeypatch)
    for metric in ("reward", "gold", "relevance"):
        rows = table[table.metric == metric]
        assert rows["mean"].tolist() == pytest.approx([0, 0], abs=1e-6) and (rows.n == len(study.prompts)).all()


def test_accuracy_is_also_that_on_the_kinds_of_error_that_only_the_prompt_shows(study, monkeypatch):
    study.error_kinds[:] = "cut_off"
    study.error_kinds[:2] = "off_topic"
    table, _ = run(study, monkeypatch)
    counts = table.drop_duplicates("metric").set_index("metric").n
    assert counts["accuracy off_topic"] == 2 and counts["accuracy"] == len(study.error_kinds)
    assert not {"accuracy wrong_object", "accuracy wrong_action"} & set(counts.index)  # there are none


def test_without_a_gold_score_the_reward_alone_is_measured(study, monkeypatch):
    monkeypatch.setattr(relevance, "gold_table", lambda *_: pd.DataFrame())
    table, _ = run(study, monkeypatch)
    assert "reward" in set(table.metric) and not {"gold", "relevance"} & set(table.metric)
