"""What the studies share: which pairs each reward model sees, in what unit rewards are, and what PPO starts from."""

import copy

from rlhf import models, outputs
from rlhf.reward import scoring
from rlhf.studies import common

import numpy as np
import pytest
import torch
from conftest import ppo_settings


def rows(part):
    return set(zip(part["prompt"], part["chosen"], strict=True))


def test_parts_of_the_pairs_are_nested_and_the_judges_half_is_disjoint(study):
    eighth, quarter, half = (rows(study.part_of_pairs(share)) for share in common.SHARES.values())
    assert eighth < quarter < half
    other = rows(study.part_of_pairs(1 / 2, skip=1 / 2))
    assert not half & other and half | other == rows(study.pairs["train"])
    assert [len(part) for part in (eighth, quarter, half)] == [round(s * 140) for s in common.SHARES.values()]


def test_settings_of_ppo_are_those_that_the_run_used(study):
    assert study.settings == ppo_settings(study.profile)


def test_run_without_ppo_is_refused_with_the_notebook_that_is_missing(profile_with_sft):
    outputs.write_json(profile_with_sft, "run.json", {"seed": 0})
    with pytest.raises(
        FileNotFoundError, match=r"lacks PPO.s settings; run 03_ppo_alignment/2_ppo_from_scratch\.ipynb"
    ):
        common.Study(profile_with_sft)


def test_proxy_is_in_deviations_of_sft_answers_above_their_mean(study, proxy):
    answers = study.sft_answers
    texts, ended = [a.text for a in answers], [a.ended for a in answers]
    logits = scoring.score(proxy.model, study.tokenizer, study.prompts, texts, ended)
    np.testing.assert_allclose(proxy(answers), (logits - logits.mean()) / logits.std(), atol=1e-5)
    np.testing.assert_allclose(proxy.reward(study.prompts, texts, ended), logits / logits.std(), rtol=1e-4)


@pytest.mark.parametrize("end", [True, False])
def test_ppo_and_the_evaluation_give_an_answer_one_reward_whether_it_ended_or_not(study, proxy, end):
    answers = [answer._replace(ended=end) for answer in study.sft_answers]
    texts, ended = [a.text for a in answers], [end] * len(answers)
    in_ppo = study.ppo_trainer(proxy).reward_fn(study.prompts, texts, ended)
    difference = in_ppo - proxy(answers)
    np.testing.assert_allclose(difference, proxy.level, atol=1e-6)  # the level alone differs
    other = study.ppo_trainer(proxy).reward_fn(study.prompts, texts, [not end] * len(answers))
    assert abs(other - in_ppo).max() > 1e-3


def test_policy_of_ppo_starts_at_sft_and_leaves_it_as_it_is(study, proxy):
    before = copy.deepcopy(study.sft.state_dict())
    trainer = study.ppo_trainer(proxy, learning_rate=0.1)
    assert trainer.settings.learning_rate == 0.1 and trainer.settings.kl_coef == study.settings.kl_coef
    assert all(torch.equal(value, before[name]) for name, value in trainer.policy.state_dict().items())
    trainer.step()
    assert all(torch.equal(value, before[name]) for name, value in study.sft.state_dict().items())
    assert not torch.equal(trainer.policy.get_input_embeddings().weight, study.sft.get_input_embeddings().weight)


def weights(profile, name):
    return models.load_reward_model(profile, name).state_dict()


def test_reward_model_does_not_depend_on_those_that_were_trained_before_it(study):
    pairs = study.part_of_pairs(1 / 8)
    study.train_reward_model("eighth", pairs)
    study.train_reward_model("quarter", pairs)  # the second of the process, on the same pairs
    first, second = (weights(study.profile, name) for name in ("eighth", "quarter"))
    assert all(torch.equal(first[name], value) for name, value in second.items())
    study.train_reward_model("judge", pairs, other_seed=1000)
    assert not torch.equal(weights(study.profile, "judge")["score.weight"], first["score.weight"])


def test_members_of_an_ensemble_are_trained_on_the_same_pairs_by_other_seeds(study, monkeypatch):
    made = []

    def trainer(profile, model, tokenizer, train, validation):
        made.append((profile.seed, sorted(train["chosen"]), train["chosen"], model.score.weight.clone()))
        raise InterruptedError

    monkeypatch.setattr(common, "make_trainer", trainer)
    for member, name in enumerate(common.MEMBERS[:2]):
        with pytest.raises(InterruptedError):
            study.train_reward_model(name, study.part_of_pairs(1 / 4), member=member, mismatched_first=0.0)
    first, second = made
    assert (first[0], second[0]) == (study.profile.seed, study.profile.seed + 1000)
    assert first[1] == second[1] and first[2] != second[2] and not torch.equal(first[3], second[3])


def test_reward_model_that_is_there_is_not_trained_again(study, monkeypatch):
    outputs.checkpoint_path(study.profile, "reward_model_half").mkdir(parents=True)
    monkeypatch.setattr(common, "make_trainer", None)
    study.train_reward_model("half", study.part_of_pairs(1 / 2))


def test_every_reward_model_that_is_trained_has_a_name_that_is_known(study, monkeypatch):
    trained = []
    monkeypatch.setattr(common.Study, "train_reward_model", lambda self, name, *_, **__: trained.append(name))
    study.train_halves()
    assert set(trained) <= set(common.REWARD_MODELS)


def test_correct_is_counted_over_the_test_pairs(study, proxy):
    correct = proxy.correct()
    test = study.pairs["test"]
    chosen, rejected = scoring.score_pairs(proxy.model, study.tokenizer, test, batch_size=4)
    assert len(correct) == len(test)
    assert correct.mean() == pytest.approx((chosen > rejected).mean() + 0.5 * (chosen == rejected).mean())


def test_accuracy_on_samples_is_counted_where_gold_prefers_one_of_two_answers():
    scores, gold = np.array([5.0, 5, 5, 5, 4, 4, 5, 0]), np.array([2.0, 2, 2, 2, 1, 3, 1, 2])  # first, then second ones
    assert common.agreed(scores, gold).tolist() == [1, 0, 0.5]
    assert len(common.agreed(scores, np.full(8, np.nan))) == 0
