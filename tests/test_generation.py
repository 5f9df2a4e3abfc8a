"""Decoding: a batch answers as each prompt alone does, sampling is repeatable, log-probabilities are exact."""

import copy
import itertools
import math
import random

from rlhf import generation, runtime
from rlhf.generation import (
    Answer,
    _as_answer,
    answer_logprobs,
    generate_answers,
    generate_texts,
    left_padded,
    right_padded,
    sample,
    uniform_draws,
)
from rlhf.models import add_pad_token
from rlhf.template import format_prompt

import numpy as np
import pytest
import torch
from test_architectures import save_model
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = [
    "How do I roast tofu slices in a small apartment?",
    "Why?",
    "What are the benefits of pruning rose bushes during the winter?",
    "How do I grill?",
    "Tell me.",
    "Which tools help with freezing pork chops?",
    "What do I need to fry mushroom caps for the first time, please?",
]
NEW = 24


@pytest.fixture
def policy(policy, tokenizer):
    """A policy that ends some answers by itself: the larger row of EOS makes its logit large where it is positive."""
    with torch.no_grad():
        policy.get_input_embeddings().weight[tokenizer.eos_token_id] *= 2.2
    return policy


def prompt_ids(tokenizer, prompt):
    return tokenizer(format_prompt(prompt))["input_ids"]


@torch.no_grad()
def greedy_by_hand(model, tokenizer, prompt, count=NEW):
    """The most likely token, one at a time, without cache, batch or padding."""
    ids = prompt_ids(tokenizer, prompt)
    new = []
    while len(new) < count and tokenizer.eos_token_id not in new:
        logits = model(input_ids=torch.tensor([ids + new])).logits[0, -1]
        new.append(logits.argmax().item())
    return tuple(new)


def sampled_answers(policy, tokenizer, prompts=PROMPTS, seed=0, **options):
    settings = {"max_new_tokens": NEW, "batch_size": 4, "temperature": 1.0, **options}
    return generate_answers(policy, tokenizer, prompts, seed=seed, **settings)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_greedy_answers_of_ragged_prompts_are_those_of_each_prompt_alone(policy, tokenizer, batch_size):
    expected = [greedy_by_hand(policy, tokenizer, prompt) for prompt in PROMPTS]
    assert len(set(expected)) >= 4  # an answer that ends at once may stand twice
    replies = generate_answers(policy, tokenizer, PROMPTS, max_new_tokens=NEW, batch_size=batch_size)
    assert [reply.token_ids for reply in replies] == expected


def test_tokens_that_are_given_are_continued_instead_of_the_template(policy, tokenizer):
    encoded = [ids[-5 - i :] for i, ids in enumerate(prompt_ids(tokenizer, prompt) for prompt in PROMPTS)]
    options = {"max_new_tokens": NEW, "batch_size": 3, "temperature": 1.0, "seed": 4}
    given = generate_answers(policy, tokenizer, PROMPTS, encoded=encoded, **options)
    found = answer_logprobs(policy, tokenizer, PROMPTS, given, encoded=encoded, batch_size=3)
    for ids, answer, logprob in zip(encoded, given, found, strict=True):
        tokens = torch.tensor([*ids, *answer.token_ids])
        with torch.no_grad():
            logprobs = torch.log_softmax(policy(tokens[None]).logits[0, len(ids) - 1 : -1], dim=-1)
        assert logprob == pytest.approx(logprobs.gather(1, tokens[len(ids) :, None]).sum().item(), abs=1e-4)
    with pytest.raises(ValueError, match=f"1 rows of tokens are given for {len(PROMPTS)} prompts; give one for each"):
        answer_logprobs(policy, tokenizer, PROMPTS, given, encoded=encoded[:1], batch_size=3)


def test_answers_stand_in_the_order_of_their_prompts(policy, tokenizer):
    options = {"max_new_tokens": NEW, "batch_size": 2}
    forward = generate_answers(policy, tokenizer, PROMPTS, **options)
    assert generate_answers(policy, tokenizer, PROMPTS[::-1], **options) == forward[::-1]


def test_ended_says_whether_the_last_token_is_eos(policy, tokenizer):
    replies = sampled_answers(policy, tokenizer, PROMPTS * 40, max_new_tokens=12)
    assert {reply.ended for reply in replies} == {True, False}
    for reply in replies:
        assert reply.ended == (reply.token_ids[-1] == tokenizer.eos_token_id)
        assert tokenizer.eos_token_id not in reply.token_ids[:-1]
        assert reply.ended or len(reply.token_ids) == 12


def test_text_is_what_the_tokens_say_without_special_ones(policy, tokenizer):
    for reply in generate_answers(policy, tokenizer, PROMPTS, max_new_tokens=NEW, batch_size=4):
        special = {tokenizer.eos_token_id, tokenizer.pad_token_id}
        plain = [token for token in reply.token_ids if token not in special]
        assert reply.text == tokenizer.decode(plain).strip()


def test_what_follows_eos_is_cut_and_eos_is_kept_as_a_token(tokenizer):
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    words = tokenizer(" heat the oven")["input_ids"]
    assert _as_answer([*words, eos, pad, pad], tokenizer) == Answer("heat the oven", (*words, eos), True)
    assert _as_answer([*words, eos, *words, eos], tokenizer) == Answer("heat the oven", (*words, eos), True)
    assert _as_answer(words, tokenizer) == Answer("heat the oven", tuple(words), False)
    assert _as_answer([eos, pad], tokenizer) == Answer("", (eos,), True)


def test_generate_gives_the_texts(policy, tokenizer):
    options = {"max_new_tokens": NEW, "batch_size": 4}
    replies = generate_answers(policy, tokenizer, PROMPTS, **options)
    assert generate_texts(policy, tokenizer, PROMPTS, **options) == [reply.text for reply in replies]


def test_side_of_the_tokenizers_padding_does_not_matter(policy, tokenizer):
    options = {"max_new_tokens": NEW, "batch_size": 4}
    tokenizer.padding_side = "left"
    left = generate_answers(policy, tokenizer, PROMPTS, **options)
    tokenizer.padding_side = "right"
    assert generate_answers(policy, tokenizer, PROMPTS, **options) == left


def test_beam_search_in_a_batch_is_that_of_each_prompt_alone(policy, tokenizer):
    options = {"max_new_tokens": 12, "num_beams": 3, "repetition_penalty": 1.2}
    alone = [generate_answers(policy, tokenizer, [prompt], batch_size=1, **options)[0] for prompt in PROMPTS]
    assert generate_answers(policy, tokenizer, PROMPTS, batch_size=4, **options) == alone
    assert alone != generate_answers(policy, tokenizer, PROMPTS, batch_size=4, max_new_tokens=12)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "mistral"])
def test_beam_search_answers_as_with_the_cache_of_transformers(name, tmp_path, tokenizer):
    save_model(tmp_path, name)
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    add_pad_token(model, tokenizer)
    ids, mask = left_padded(generation.encode_prompts(tokenizer, PROMPTS), tokenizer.pad_token_id)
    options = {"attention_mask": mask, "max_new_tokens": NEW, "num_beams": 4, "do_sample": False}
    options |= {"return_dict_in_generate": True, "output_scores": True, "num_return_sequences": 4}
    plain = model.generate(ids, **options)
    ours = model.generate(ids, past_key_values=generation.beam_cache(model, ids.shape[1] + NEW), **options)
    assert torch.equal(ours.sequences, plain.sequences)
    torch.testing.assert_close(ours.sequences_scores, plain.sequences_scores, atol=1e-6, rtol=0)
    layers = {type(layer) for layer in generation.beam_cache(model, 9).layers}
    assert (generation._BeamLayer in layers) is (name != "mistral")


def test_repetition_penalty_makes_repetition_rarer(policy, tokenizer):
    def distinct(penalty):
        replies = generate_answers(
            policy, tokenizer, PROMPTS, max_new_tokens=NEW, batch_size=7, repetition_penalty=penalty
        )
        return sum(len(set(reply.token_ids)) / len(reply.token_ids) for reply in replies)

    assert distinct(1000.0) > distinct(1.0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_prompt_that_leaves_no_room_in_the_context_is_refused_by_name(policy, tokenizer, temperature):
    room = policy.config.max_position_embeddings - len(prompt_ids(tokenizer, PROMPTS[2]))
    options = {"batch_size": 2, "temperature": temperature}
    with pytest.raises(ValueError, match=rf"'What are the benefits.*{room + 1} new ones.*context of 128"):
        generate_answers(policy, tokenizer, PROMPTS, max_new_tokens=room + 1, **options)
    replies = generate_answers(policy, tokenizer, PROMPTS[2:3], max_new_tokens=room, **options)
    assert 0 < len(replies[0].token_ids) <= room


def test_sampling_with_a_seed_is_repeatable(policy, tokenizer):
    first = sampled_answers(policy, tokenizer, seed=5)
    torch.rand(3)
    assert sampled_answers(policy, tokenizer, seed=5) == first
    assert sampled_answers(policy, tokenizer, seed=6) != first


def test_sampling_leaves_the_global_generator_as_it_was(policy, tokenizer):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    sampled_answers(policy, tokenizer)
    assert torch.equal(torch.get_rng_state(), before)


def test_equal_prompts_are_sampled_independently(policy, tokenizer):
    replies = sampled_answers(policy, tokenizer, [PROMPTS[0]] * 6, batch_size=3)
    assert len(set(replies)) == 6


@pytest.mark.parametrize("batch_size", [1, 3, 7])
@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1), slice(2, 5)], ids=["same", "reversed", "some"])
def test_draw_belongs_to_seed_and_prompt_whatever_the_batch_the_order_and_the_neighbours(
    policy, tokenizer, batch_size, order
):
    whole = dict(zip(PROMPTS, sampled_answers(policy, tokenizer, PROMPTS), strict=True))
    assert len(set(whole.values())) >= 6
    again = sampled_answers(policy, tokenizer, PROMPTS[order], batch_size=batch_size)
    assert again == [whole[prompt] for prompt in PROMPTS[order]]


def test_two_equal_models_give_equal_answers_in_every_batch(policy, tokenizer):
    twin = copy.deepcopy(policy)
    prompts = [f"{prompt} {i}" for i in range(4) for prompt in PROMPTS]  # seven batches of four
    assert sampled_answers(policy, tokenizer, prompts) == sampled_answers(twin, tokenizer, prompts)


def test_draws_are_uniform_repeatable_and_new_for_a_prompt_that_stands_again():
    draws = uniform_draws("0", ["a", "b", "a"], 500)
    assert draws.shape == (3, 500) and draws.dtype == torch.float64
    assert draws.min() >= 0 and draws.max() < 1 and draws.mean().item() == pytest.approx(0.5, abs=0.03)
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(uniform_draws("0", ["b", "a"], 500), draws[[1, 0]])
    assert not torch.equal(uniform_draws("1", ["a"], 500), draws[:1])
    assert uniform_draws("0", ["\ud800"], 1).shape == (1, 1)  # half a character, as a broken file may hold


def test_padding_stands_on_the_side_that_is_asked_for():
    ids, mask = left_padded([[1, 2], [3]], pad=0)
    assert ids.tolist() == [[1, 2], [0, 3]] and mask.tolist() == [[1, 1], [0, 1]]
    ids, mask = right_padded([[1, 2], [3]], pad=0)
    assert ids.tolist() == [[1, 2], [3, 0]] and mask.tolist() == [[1, 1], [1, 0]]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_follow_the_softmax_of_the_whole_vocabulary(policy, tokenizer, temperature):
    with torch.no_grad():
        logits = policy(input_ids=torch.tensor([prompt_ids(tokenizer, "Why?")])).logits[0, -1]
    probability = (logits.double() / temperature).softmax(-1)
    draws = sampled_answers(
        policy, tokenizer, ["Why?"] * 1000, batch_size=500, temperature=temperature, max_new_tokens=1
    )
    drawn = torch.tensor([reply.token_ids[0] for reply in draws])
    ranked = probability.argsort(descending=True)
    for part in (ranked[:1], ranked[:5], ranked[50:]):  # a cut to the 50 best, the library's default, would show
        expected = probability[part].sum().item()
        share = torch.isin(drawn, part).double().mean().item()
        assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / 1000) + 1e-3


@torch.no_grad()
def logprob_by_hand(model, tokenizer, prompt, reply):
    """log p of each token given all before it: one forward pass per token."""
    ids, total = prompt_ids(tokenizer, prompt), 0.0
    for token in reply.token_ids:
        total += model(input_ids=torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)[token].item()
        ids = [*ids, token]
    return total


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batches_hold_every_row_once_the_shortest_first_and_no_more_than_stays_in_the_cache(
    policy, monkeypatch, batch_size
):
    rows = [[0] * random.Random(i).randint(1, 12) for i in range(40)]
    monkeypatch.setattr(generation, "CACHED", 20 * policy.config.n_embd)
    batches = list(generation.by_length(policy, [*rows, [0] * 50], batch_size))
    lengths = [[len(rows[i]) for i in batch] for batch in batches[:-1]]
    assert sorted(itertools.chain(*batches)) == [*range(41)] and batches[-1] == [40]  # alone, though it is too long
    assert list(itertools.chain(*lengths)) == sorted(map(len, rows))
    assert all(len(batch) <= batch_size and len(batch) * batch[-1] <= 20 for batch in lengths)
    for batch, following in itertools.pairwise(lengths):  # none could have taken one more
        assert len(batch) == batch_size or (len(batch) + 1) * following[0] > 20


def test_batches_on_a_gpu_are_as_large_as_asked_for(policy):
    rows = [[0] * 1000] * 7
    with torch.device("meta"):
        elsewhere = torch.nn.Linear(4, 768)
    assert [len(batch) for batch in generation.by_length(elsewhere, rows, 3)] == [3, 3, 1]
    assert list(generation.by_length(policy, [], 3)) == []


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_logprobs_are_those_of_one_token_after_another(policy, tokenizer, batch_size):
    eos, draw = tokenizer.eos_token_id, random.Random(0)
    replies = []
    for i in range(len(PROMPTS)):  # of 1 to 7 tokens, every second one ended
        words = draw.choices(range(2, len(tokenizer)), k=i)
        replies.append(Answer("", (*words, eos), True) if i % 2 == 0 else Answer("", tuple(words), False))
    expected = [logprob_by_hand(policy, tokenizer, p, r) for p, r in zip(PROMPTS, replies, strict=True)]
    got = answer_logprobs(policy, tokenizer, PROMPTS, replies, batch_size=batch_size)
    assert got.shape == (len(PROMPTS),)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)


def test_logprob_of_ending_is_counted(policy, tokenizer):
    words = tuple(tokenizer(" heat the oven")["input_ids"])
    replies = [Answer("", words, False), Answer("", (*words, tokenizer.eos_token_id), True)]
    without, with_eos = answer_logprobs(policy, tokenizer, PROMPTS[:1] * 2, replies, batch_size=2)
    assert with_eos < without - 0.01 < 0


def test_kl_of_a_policy_from_itself_is_zero_and_from_another_positive(policy, tokenizer):
    replies = sampled_answers(policy, tokenizer, [PROMPTS[0]] * 60, batch_size=60)
    prompts = [PROMPTS[0]] * 60
    own = answer_logprobs(policy, tokenizer, prompts, replies, batch_size=7)
    assert own == pytest.approx(answer_logprobs(policy, tokenizer, prompts, replies, batch_size=60), abs=1e-3)
    with torch.no_grad():
        policy.get_input_embeddings().weight *= 0.8
    other = answer_logprobs(policy, tokenizer, prompts, replies, batch_size=7)
    assert (own - other).mean() > 0.5


def test_log_probability_is_that_of_the_temperature_of_sampling(policy, tokenizer):
    replies = sampled_answers(policy, tokenizer, PROMPTS, temperature=0.5)
    totals = answer_logprobs(policy, tokenizer, PROMPTS, replies, batch_size=2, temperature=0.5)
    for prompt, reply, total in zip(PROMPTS, replies, totals, strict=True):
        start = tokenizer(format_prompt(prompt))["input_ids"]
        ids = torch.tensor([start + list(reply.token_ids)])
        with torch.no_grad():
            logprobs = (policy(input_ids=ids).logits[0] / 0.5).log_softmax(-1)
        naive = sum(logprobs[i - 1, ids[0, i]].item() for i in range(len(start), ids.shape[1]))
        assert total == pytest.approx(naive, abs=1e-3)


def sampled(policy, tokenizer, temperature=0.8, seed=0, prompts=PROMPTS):
    ids, mask = left_padded(tokenizer([format_prompt(p) for p in prompts])["input_ids"], tokenizer.pad_token_id)
    draws, ends = uniform_draws(str(seed), prompts, NEW), {"eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    return ids, mask, sample(policy, ids, mask, draws, temperature=temperature, **ends)


def test_logprobs_of_a_sample_are_those_of_a_forward_pass_of_each_row_alone(policy, tokenizer):
    """Also of rows that go on when others have left the batch."""
    with torch.no_grad():
        policy.get_input_embeddings().weight[tokenizer.eos_token_id] *= 12
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(24)]
    ids, mask, drawn = sampled(policy, tokenizer, prompts=prompts)
    eos = tokenizer.eos_token_id
    lengths = [row.index(eos) + 1 if eos in row else NEW for row in drawn.tokens.tolist()]
    assert len(set(lengths)) > 5 and min(lengths) < 8
    for i, length in enumerate(lengths):
        row = torch.cat([ids[i][mask[i].bool()], drawn.tokens[i, :length]])[None]
        with torch.no_grad():
            states = policy.transformer(input_ids=row).last_hidden_state[0, -length - 1 : -1]
            logprobs = torch.log_softmax(policy.get_output_embeddings()(states) / 0.8, dim=-1)
        expected = logprobs.gather(1, drawn.tokens[i, :length, None]).squeeze(1)
        assert drawn.logprobs[i, :length].numpy() == pytest.approx(expected.numpy(), abs=1e-4)
        assert (drawn.tokens[i, length:] == tokenizer.pad_token_id).all()
        assert (drawn.logprobs[i, length:] == 0).all()


def test_head_that_is_more_than_a_matrix_is_used_as_it_is(policy, tokenizer):
    """A bias that lets one token alone through."""
    head = torch.nn.Linear(policy.config.hidden_size, policy.config.vocab_size)
    torch.nn.init.zeros_(head.bias)
    with torch.no_grad():
        head.bias[7] = 1e4
    policy.set_output_embeddings(head)
    assert (sampled(policy, tokenizer)[2].tokens == 7).all()


def test_sample_at_a_tiny_temperature_is_the_greedy_search(policy, tokenizer):
    _, _, drawn = sampled(policy, tokenizer, temperature=1e-4)
    greedy = generate_answers(policy, tokenizer, PROMPTS, max_new_tokens=NEW, batch_size=1)
    for row, reply in zip(drawn.tokens.tolist(), greedy, strict=True):
        assert tuple(row[: len(reply.token_ids)]) == reply.token_ids


def test_first_tokens_are_drawn_as_often_as_they_are_probable(policy, tokenizer):
    ids, mask, _ = sampled(policy, tokenizer, prompts=PROMPTS[:1])
    count = 4_000
    draws = uniform_draws("0", PROMPTS[:1] * count, 1)
    ends = {"eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    drawn = sample(policy, ids.repeat(count, 1), mask.repeat(count, 1), draws, temperature=0.3, **ends).tokens[:, 0]
    with torch.no_grad():
        probabilities = torch.softmax(policy(input_ids=ids, attention_mask=mask).logits[0, -1] / 0.3, dim=-1)
    found = torch.bincount(drawn, minlength=len(probabilities)) / count
    likely = probabilities > 0.005
    error = (probabilities * (1 - probabilities) / count).sqrt()
    assert likely.sum() > 3
    assert ((found - probabilities).abs() < 4.5 * error)[likely].all()
    assert float(found[~likely].sum()) == pytest.approx(float(probabilities[~likely].sum()), abs=0.04)


def test_sample_refuses_a_temperature_of_zero(policy, tokenizer):
    with pytest.raises(ValueError, match="temperature 0 is not positive"):
        sampled(policy, tokenizer, temperature=0)


def test_sums_in_float32_as_on_apples_gpu_draw_the_same_answers(policy, tokenizer, monkeypatch):
    exact = sampled(policy, tokenizer)[2]
    monkeypatch.setattr(runtime, "finest", lambda where: torch.float32)
    coarse = sampled(policy, tokenizer)[2]
    assert torch.equal(exact.tokens, coarse.tokens) and torch.equal(exact.logprobs, coarse.logprobs)
