"""Ensembles of reward models: how they combine scores, and their curves beside that of a single model."""

from types import SimpleNamespace

from rlhf import metrics
from rlhf.generation import Answer
from rlhf.studies import common, ensembles, overoptimisation

import numpy as np
import pandas as pd
import pytest

SCORES = np.array([[1.0, 2.0], [3.0, 2.0], [5.0, 5.0]])  # of three models


def test_combinations_have_known_values():
    assert ensembles.mean(SCORES).tolist() == [3, 3]
    assert ensembles.worst_case(SCORES).tolist() == [1, 2]
    assert ensembles.uncertainty_weighted(SCORES, weight=0.75).tolist() == pytest.approx([3 - 0.75 * 8 / 3, 3 - 1.5])
    assert ensembles.uncertainty_weighted(SCORES, weight=0).tolist() == ensembles.mean(SCORES).tolist()


@pytest.mark.parametrize("name", ensembles.COMBINATIONS)
def test_models_that_agree_are_as_one(name):
    scores = np.random.default_rng(0).normal(size=20)
    np.testing.assert_allclose(ensembles.COMBINATIONS[name](np.stack([scores] * 3)), scores)


def test_an_ensemble_gives_ppo_what_it_gives_the_evaluation(study, proxy):
    answers = study.sft_answers
    texts, ended = [a.text for a in answers], [a.ended for a in answers]
    shifted = SimpleNamespace(reward=lambda *of: proxy.reward(*of) + 5, level=proxy.level + 5)
    ensemble = ensembles.Ensemble([proxy, shifted], ensembles.worst_case)  # a model's own level plays no part
    np.testing.assert_allclose(ensemble.reward(study.prompts, texts, ended), proxy(answers), atol=1e-6)
    np.testing.assert_allclose(ensembles.Ensemble([proxy, proxy], ensembles.mean)(answers), proxy(answers))


def curve(kl, gold):
    """Points and the gold scores of four prompts, of which each has its own level."""
    gold = np.asarray(gold, dtype=float)[:, None] + np.array([0.0, 1.0, 2.0, 3.0])
    return pd.DataFrame({"kl": kl}), {"gold": gold}


def test_gold_is_compared_with_that_of_the_single_model_at_the_same_distance():
    single = curve([0, 4, 1], [0, 30, 10])  # it went to distance 2 and came back to 1
    rows = ensembles.above_single(curve([-1e-9, 2.25, 9], [0, 25, 40]), single)
    assert rows[:2] == [(0, 0, 0), (pytest.approx(5),) * 3]
    assert np.isnan(rows[2]).all()  # the single model was not there


def test_best_of_n_by_each_combination_is_of_the_same_answers(monkeypatch):
    count = overoptimisation.CANDIDATES
    gold, *scores = np.random.default_rng(0).normal(size=(4, 2, count))
    monkeypatch.setattr(ensembles, "decode", lambda *given: [Answer("", (), True)] * len(given[3]))
    study = SimpleNamespace(prompts=["a", "b"], profile=None, sft=None, tokenizer=None, gold=lambda *_: gold.ravel())
    proxies = [lambda *_, of=of: of.ravel() for of in scores]
    curves = ensembles.best_of_n_curves(study, proxies)
    by_setting = {points.setting[0]: found for points, found in curves}
    assert list(by_setting) == ["single", *ensembles.COMBINATIONS]
    assert curves[0][0].kl.tolist() == [metrics.best_of_n_kl(n) for n in overoptimisation.CHOICES]
    chosen = np.min(scores, axis=0).argmax(axis=1)
    np.testing.assert_allclose(by_setting["worst_case"]["gold"][-1], gold[range(2), chosen])
    alone = [metrics.best_of_n(of, gold, 8) for of in scores]
    np.testing.assert_allclose(by_setting["single"]["gold"][3], np.mean(alone, axis=0))


def test_every_combination_is_optimised_both_ways(study, proxy, monkeypatch):
    trained, pushed = {}, []
    monkeypatch.setattr(study, "train_reward_model", lambda name, pairs, member: trained.update({name: member}))
    monkeypatch.setattr(ensembles, "ASKED", 4)
    ppo_trainer = study.ppo_trainer
    monkeypatch.setattr(study, "ppo_trainer", lambda *given, **changes: pushed.append(changes) or ppo_trainer(*given))
    tables = ensembles.run(study)
    assert trained == {"quarter": 0, "quarter_1": 1, "quarter_2": 2} and list(trained) == list(common.MEMBERS)
    rate = overoptimisation.LEARNING_RATE_FACTOR * study.settings.learning_rate
    assert pushed == [{"kl_coef": 0, "learning_rate": rate}] * 4
    rows, turns = tables["ensembles.csv"], tables["ensemble_turns.csv"]
    settings = ["single", *ensembles.COMBINATIONS]
    assert rows.groupby("method", sort=False).setting.unique().map(list).to_dict() == dict.fromkeys(
        ["best_of_n", "ppo"], settings
    )
    assert set(rows.n[rows.method == "best_of_n"]) == {4} and set(rows.n[rows.method == "ppo"]) == {len(study.prompts)}
    single = rows[(rows.setting == "single") & (rows.method == "best_of_n")]
    assert (single[ensembles.ABOVE].abs() < 1e-12).all(axis=None)
    assert len(turns) == 8 and set(turns.by) == {"gold"}
    starts = rows[rows.x == rows.groupby("method").x.transform("min")].round(9).groupby("method").gold.nunique()
    assert (starts == 1).all()  # all begin at SFT
