"""Scoring: one number for an answer, whatever stands beside it in the batch and on whichever side it is padded."""

from rlhf.reward.scoring import encode, rescale, score, score_pairs
from rlhf.template import format_prompt

import numpy as np
import pytest
import torch
from datasets import Dataset

PROMPTS = [
    "How do I roast tofu slices in a small apartment?",
    "Why?",
    "What are the benefits of pruning rose bushes?",
    "How do I grill?",
    "Tell me.",
]
RESPONSES = [
    "First, heat the oven. Finally, let the roast rest.",
    "Because.",
    "Light and air reach the inner stems. Tip: look from far to judge the shape. That is all there is to it.",
    "",
    "It is what it is.",
]
ENDED = [True, False, True, False, True]
ALL = [True] * 5


@torch.no_grad()
def score_by_hand(model, tokenizer, prompt, response, end=True):
    ids = tokenizer(format_prompt(prompt) + response)["input_ids"] + [tokenizer.eos_token_id] * end
    hidden = model.transformer(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
    return (hidden @ model.score.weight[0]).item()


@pytest.fixture
def expected(reward_model, tokenizer):
    scores = [score_by_hand(reward_model, tokenizer, p, r) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    assert np.ptp(scores) > 0.1  # else any order would do
    return scores


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 32])
def test_score_is_the_same_alone_and_in_a_padded_batch(reward_model, tokenizer, expected, side, batch_size):
    tokenizer.padding_side = side
    got = score(reward_model, tokenizer, PROMPTS, RESPONSES, ALL, batch_size=batch_size)
    assert got.shape == (5,) and got.dtype == np.float64
    np.testing.assert_allclose(got, expected, atol=1e-4, rtol=0)


def test_scores_stand_in_the_order_of_their_prompts(reward_model, tokenizer, expected):
    backwards = score(reward_model, tokenizer, PROMPTS[::-1], RESPONSES[::-1], ALL, batch_size=2)
    np.testing.assert_allclose(backwards[::-1], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_score_of_an_answer_that_did_not_end_is_read_at_its_last_token(reward_model, tokenizer, expected, batch_size):
    got = score(reward_model, tokenizer, PROMPTS, RESPONSES, ENDED, batch_size=batch_size)
    by_hand = [score_by_hand(reward_model, tokenizer, *each) for each in zip(PROMPTS, RESPONSES, ENDED, strict=True)]
    np.testing.assert_allclose(got, by_hand, atol=1e-4, rtol=0)
    assert all((abs(got - expected) > 1e-3) == ~np.array(ENDED))


def test_scoring_switches_dropout_off(tokenizer, reward_model, expected):
    for module in reward_model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    reward_model.train()
    np.testing.assert_allclose(score(reward_model, tokenizer, PROMPTS, RESPONSES, ALL), expected, atol=1e-4, rtol=0)


def test_white_space_around_prompt_and_response_does_not_count(reward_model, tokenizer, expected):
    padded = [f" {text}\n" for text in PROMPTS], [f"\n{text}  " for text in RESPONSES]
    np.testing.assert_allclose(score(reward_model, tokenizer, *padded, ALL), expected, atol=1e-4, rtol=0)


def test_encoded_text_is_template_prompt_response_and_eos(tokenizer):
    for ids, prompt, response in zip(encode(tokenizer, PROMPTS, RESPONSES, ALL), PROMPTS, RESPONSES, strict=True):
        assert tokenizer.decode(ids) == format_prompt(prompt) + response + tokenizer.eos_token
        assert ids.count(tokenizer.eos_token_id) == 1
    unended = encode(tokenizer, PROMPTS, RESPONSES, [False] * 5)
    assert unended == [ids[:-1] for ids in encode(tokenizer, PROMPTS, RESPONSES, ALL)]


def test_text_longer_than_the_context_is_refused_by_name_and_never_cut(reward_model, tokenizer):
    prompt = "Which one of them?"
    room = reward_model.config.max_position_embeddings - len(encode(tokenizer, [prompt], [""], [True])[0])
    word = "a" if len(tokenizer("a a")["input_ids"]) == 2 else " a"
    fits = " ".join([word] * room)
    assert len(encode(tokenizer, [prompt], [fits], [True])[0]) == 128
    assert score(reward_model, tokenizer, [prompt], [fits], [True]) == pytest.approx(
        score_by_hand(reward_model, tokenizer, prompt, fits), abs=1e-4
    )
    with pytest.raises(ValueError, match=r"'Which one of them\?' takes 129 tokens.*context of 128"):
        score(reward_model, tokenizer, [PROMPTS[1], prompt], ["Because.", f"{fits} a"], [True] * 2)


@pytest.mark.parametrize(("prompts", "responses"), [(["a", "b"], ["c"]), ([], ["c"]), (["a"], [])])
def test_unequal_numbers_of_prompts_and_responses_are_refused(reward_model, tokenizer, prompts, responses):
    with pytest.raises(ValueError, match=f"{len(prompts)} prompts, {len(responses)} responses"):
        score(reward_model, tokenizer, prompts, responses, [True] * len(prompts))


def test_unequal_numbers_of_ended_flags_are_refused(reward_model, tokenizer):
    with pytest.raises(ValueError, match="5 responses and 1 marks of an end"):
        score(reward_model, tokenizer, PROMPTS, RESPONSES, [True])


def test_pad_token_that_is_eos_is_refused(reward_model, tokenizer):
    tokenizer.pad_token = tokenizer.eos_token
    reward_model.config.pad_token_id = tokenizer.eos_token_id
    with pytest.raises(ValueError, match=r"pad token \('<\|endoftext\|>'.*must differ from EOS"):
        score(reward_model, tokenizer, PROMPTS, RESPONSES, ALL)


def test_model_that_knows_another_pad_token_is_refused(reward_model, tokenizer):
    reward_model.config.pad_token_id = None
    with pytest.raises(ValueError, match=r"pad token.*the model's \(None\)"):
        score(reward_model, tokenizer, PROMPTS, RESPONSES, ALL)


def test_tokenizer_without_a_pad_token_is_refused(reward_model, tokenizer):
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="pad token"):
        score(reward_model, tokenizer, PROMPTS, RESPONSES, ALL)


def test_rescaling_multiplies_every_score(reward_model, tokenizer, expected):
    rescale(reward_model, 0.25)
    assert score(reward_model, tokenizer, PROMPTS, RESPONSES, ALL) == pytest.approx(
        np.multiply(expected, 0.25), abs=1e-4
    )


@pytest.mark.parametrize("factor", [0.0, -1.0, float("inf"), float("nan")])
def test_rescaling_that_would_lose_the_order_is_refused(reward_model, factor):
    with pytest.raises(ValueError, match="positive"):
        rescale(reward_model, factor)


def test_pairs_are_scored_as_texts_that_ended(reward_model, tokenizer, expected):
    pairs = {"prompt": PROMPTS, "chosen": RESPONSES, "rejected": RESPONSES[::-1]}
    chosen, rejected = score_pairs(reward_model, tokenizer, Dataset.from_dict(pairs), batch_size=2)
    assert chosen == pytest.approx(expected, abs=1e-4)
    alone = score(reward_model, tokenizer, PROMPTS, RESPONSES[::-1], ALL)
    assert rejected == pytest.approx(alone, abs=1e-4)
