"""The value function that PPO starts with: where its values stand, that it learns, that it says what it knows."""

import copy

from rlhf.generation import Answer
from rlhf.template import format_prompt

import numpy as np
import pytest
import torch
from conftest import import_stage

value_model = import_stage("03_ppo_alignment/value_model.py")

PROMPTS = ["Why?", "How do I roast tofu slices without any help?"]
OPTIONS = {"epochs": 1, "learning_rate": 1e-3, "batch_size": 4, "seed": 0}


def as_answer(tokenizer, text, ended=True):
    ids = tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] * ended
    return Answer(text, tuple(ids), ended)


@pytest.fixture
def told(tokenizer):
    """Answers whose first word decides their reward, whatever the rest says: 1 or 3."""
    rng = np.random.default_rng(0)
    prompts = [PROMPTS[i % 2] for i in range(80)]
    rewards = rng.choice([1.0, 3.0], size=80)
    words = ["First", "heat", "the", "oven", "then", "wait"]
    texts = [
        " ".join(["Yes" if reward == 3 else "No", *rng.choice(words, size=rng.integers(2, 7))]) for reward in rewards
    ]
    return prompts, [as_answer(tokenizer, text) for text in texts], rewards


def test_values_are_those_of_each_row_alone_from_the_prompts_last_token_on(reward_model, tokenizer):
    answers = [as_answer(tokenizer, "Because."), as_answer(tokenizer, "First, heat the oven", ended=False)]
    prompt_ids = [tokenizer(format_prompt(prompt))["input_ids"] for prompt in PROMPTS]
    with torch.no_grad():
        values, mask = value_model.token_values(reward_model, tokenizer, prompt_ids, answers)
        for row, (prompt, reply) in enumerate(zip(prompt_ids, answers, strict=True)):
            ids = [*prompt, *reply.token_ids]
            hidden = reward_model.transformer(torch.tensor([ids])).last_hidden_state
            expected = reward_model.score(hidden)[0, len(prompt) - 1 :, 0]
            assert len(expected) == len(reply.token_ids) + 1
            torch.testing.assert_close(values[row][mask[row]], expected, atol=1e-5, rtol=0)


def test_what_the_answer_tells_is_learned_and_explained(reward_model, tokenizer, told):
    prompts, answers, rewards = told
    options = OPTIONS | {"epochs": 12, "learning_rate": 3e-3, "batch_size": 8}
    explained = value_model.fit_value_model(reward_model, tokenizer, prompts, answers, rewards, **options)
    assert 0.6 < explained < 1  # before the first word nothing tells, so not all of it
    prompt_ids = [tokenizer(format_prompt(prompt))["input_ids"] for prompt in prompts]
    with torch.no_grad():
        values, mask = value_model.token_values(reward_model, tokenizer, prompt_ids, answers)
    last = torch.stack([row[chosen][-1] for row, chosen in zip(values, mask, strict=True)])
    assert np.abs(last.numpy() - rewards).mean() < 0.3


def test_rewards_that_nothing_tells_are_not_explained(reward_model, tokenizer, told):
    prompts, answers, _ = told
    rewards = np.random.default_rng(1).normal(size=len(answers))
    explained = value_model.fit_value_model(reward_model, tokenizer, prompts, answers, rewards, **OPTIONS)
    assert explained < 0.2


def test_head_starts_at_zero_whatever_the_reward_model_said(reward_model, tokenizer, told):
    prompts, answers, rewards = told
    other = copy.deepcopy(reward_model)
    with torch.no_grad():
        other.score.weight.mul_(100)
    for model in (reward_model, other):
        value_model.fit_value_model(model, tokenizer, prompts, answers, rewards, **OPTIONS)
    for one, two in zip(reward_model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_max_steps_cuts_the_fit_short_and_too_few_answers_are_refused(reward_model, tokenizer, told):
    prompts, answers, rewards = told
    one, many = copy.deepcopy(reward_model), copy.deepcopy(reward_model)
    value_model.fit_value_model(one, tokenizer, prompts, answers, rewards, **OPTIONS, max_steps=1)
    value_model.fit_value_model(many, tokenizer, prompts, answers, rewards, **OPTIONS)
    assert 0 < one.score.weight.abs().max() < many.score.weight.abs().max()
    with pytest.raises(ValueError, match="9 answers are too few"):
        value_model.fit_value_model(one, tokenizer, prompts[:9], answers[:9], rewards[:9], **OPTIONS)
