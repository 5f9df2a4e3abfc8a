"""Each planted fault is really there, and nothing else of the run differs from a sound one."""

import dataclasses

from rlhf import outputs
from rlhf.generation import trunk_of
from rlhf.ppo import algorithm
from rlhf.ppo.trainer import PPOTrainer
from rlhf.reward import scoring
from rlhf.studies import faults
from rlhf.tokens import encode

import numpy as np
import pytest
import torch

UNIT = 2.0
ANSWERS = ["First, heat the oven.", "Yes.", "It depends on the weather and on what you have at home."]
ENDED = [True, True, False]


@pytest.fixture
def start(study, proxy):
    """What the runs start from; its reward model is that of the fixture `proxy`, with an untrained head."""
    outputs.write_json(study.profile, "reward_unit.json", {"logits": UNIT})
    return faults.Start(study)


@pytest.fixture
def asked(start):
    return start.study.prompts[: len(ANSWERS)], ANSWERS, ENDED


def changes(start, trainer):
    """The settings in which a trainer differs from a sound run."""
    sound = dataclasses.asdict(start.settings)
    return {name: value for name, value in dataclasses.asdict(trainer.settings).items() if value != sound[name]}


def test_sound_run_has_the_settings_of_the_run_and_its_reward_in_the_unit(start, asked):
    trainer = start.trainer()
    assert changes(start, trainer) == {} and trainer.ref is start.study.sft and trainer.policy is not trainer.ref
    expected = scoring.score(start.reward_model, start.tokenizer, *asked) / UNIT
    np.testing.assert_allclose(trainer.reward_fn(*asked), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("fault", "changed"),
    [
        ("no_kl_penalty", {"kl_coef": 0.0}),
        ("rate_times_ten", {"learning_rate": 10 * 1e-4}),
        ("no_whitening", {"whiten_advantages": False}),
        *((name, {}) for name in ("pad_is_eos", "template_mismatch", "wrong_token", "reference_is_policy")),
        ("reward_at_chance", {}),
    ],
)
def test_fault_of_a_setting_changes_that_setting_alone_and_another_fault_none(start, fault, changed):
    assert changes(start, faults.FAULTS[fault](start)) == pytest.approx(changed)


@pytest.mark.parametrize("fault", ["no_kl_penalty", "rate_times_ten", "no_whitening", "reference_is_policy"])
def test_fault_outside_of_the_reward_leaves_it_as_it_is(start, asked, fault):
    np.testing.assert_array_equal(faults.FAULTS[fault](start).reward_fn(*asked), start.reward(*asked))


def test_with_pad_as_eos_the_end_of_an_answer_has_no_place_in_the_loss(start, monkeypatch):
    trainer, eos, pad = faults.pad_is_eos(start), start.tokenizer.eos_token_id, start.tokenizer.pad_token_id
    responses = torch.tensor([[5, 6, eos, pad], [eos, pad, pad, pad], [5, 6, 7, 8]])
    mask, ended = algorithm.response_mask(responses, eos), torch.tensor([True, True, False])
    rollout = faults.Rollout(responses, mask, responses, mask, ended, torch.zeros(3, 4))
    monkeypatch.setattr(PPOTrainer, "generate", lambda self, indices, draws: rollout)
    seen = trainer.generate([0, 1, 2], "a test")
    assert mask.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert seen.mask.tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]  # EOS alone: one token must be left
    assert seen.ended.tolist() == ended.tolist() and start.trainer().generate([0], "a test").mask is mask


def test_with_pad_as_eos_the_reward_model_reads_no_end(start, asked):
    prompts, answers, _ = asked
    given = faults.pad_is_eos(start).reward_fn(*asked)
    np.testing.assert_allclose(given, start.reward(prompts, answers, [False] * 3), atol=1e-6)
    assert given[0] != start.reward(*asked)[0] and given[2] == start.reward(*asked)[2]


def test_with_another_template_the_reward_model_reads_that_text(start, asked):
    texts = [f"\n\nHuman: {prompt}\n\nAssistant: {answer}" for prompt, answer in zip(*asked[:2], strict=True)]
    encoded, eos = encode(start.tokenizer, texts), start.tokenizer.eos_token_id
    rows = [ids + [eos] * end for ids, end in zip(encoded, ENDED, strict=True)]
    expected = scoring.score_tokens(start.reward_model, rows, start.tokenizer.pad_token_id) / UNIT
    given = faults.template_mismatch(start).reward_fn(*asked)
    np.testing.assert_allclose(given, expected, atol=1e-6)
    assert np.abs(given - start.reward(*asked)).min() > 1e-4


@torch.no_grad()
def test_wrong_token_is_the_last_column_which_is_right_for_the_longest_answer_alone(start, asked):
    given, rows = faults.wrong_token(start).reward_fn(*asked), scoring.encode(start.tokenizer, *asked)
    width, pad = max(map(len, rows)), start.tokenizer.pad_token_id
    for score, row in zip(given, rows, strict=True):
        ids = torch.tensor([row + [pad] * (width - len(row))])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row))])
        states = trunk_of(start.reward_model)(input_ids=ids, attention_mask=mask).last_hidden_state
        assert score == pytest.approx(start.reward_model.score(states[0, -1]).item() / UNIT, abs=1e-5)
    right = np.isclose(given, start.reward(*asked), atol=1e-5)
    assert right.tolist() == [len(row) == width for row in rows]


def test_where_the_reference_is_the_policy_their_kl_is_exactly_zero_after_steps_too(start):
    trainer, sound = faults.reference_is_policy(start), start.trainer()
    for _ in range(2):
        trainer.step(), sound.step()
    assert trainer.ref is trainer.policy and start.study.sft is not trainer.policy
    assert [row["kl"] for row in trainer.rows] == [row["kl_k3"] for row in trainer.rows] == [0.0, 0.0]
    assert sound.rows[1]["kl_k3"] > 0


def test_reward_at_chance_comes_from_another_head_and_has_the_same_deviation_over_sft(start, asked):
    study = start.study
    reward = faults.reward_at_chance(start).reward_fn
    texts, ended = [a.text for a in study.sft_answers], [a.ended for a in study.sft_answers]
    assert reward(study.prompts, texts, ended).std() == pytest.approx(1)
    assert np.abs(reward(*asked) - start.reward(*asked)).min() > 1e-3


def test_without_whitening_advantages_are_what_is_left_of_the_baseline(start):
    trainer = faults.no_whitening(start)
    experience = trainer.experience(trainer._next_prompts(), "a test")
    advantages = experience.advantages[experience.rollout.mask.bool()]
    assert abs(advantages.std().item() - 1) > 1e-3
    whitened = start.trainer()
    whitened = whitened.experience(whitened._next_prompts(), "a test")
    again = algorithm.masked_whiten(experience.advantages, experience.rollout.mask)
    torch.testing.assert_close(whitened.advantages, again)


def test_every_fault_says_in_one_line_what_it_is():
    assert len(faults.FAULTS) == 8
    assert all(function.__doc__ and len(function.__doc__.splitlines()) == 1 for function in faults.FAULTS.values())
