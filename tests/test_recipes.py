"""Recipes: parts that are taken up for the same settings alone, beginnings, and measures of what is written."""

import dataclasses
import json

from rlhf import models, outputs, recipes
from rlhf.generation import trunk_of
from rlhf.ppo.settings import Settings
from rlhf.tokens import encode

import numpy as np
import pandas as pd
import pytest
import torch

SENTENCES = ["a stirring film", "it's dull, and it won't end", "what a clever, moving story this is", "warm"]


def made(profile, name, calls, **options):
    frame = pd.DataFrame({"made": [len(calls)]})

    def make():
        calls.append(name)
        return [recipes.Table("table.csv", frame)]

    return pd.read_csv(recipes.part(profile, name, make, **options) / "table.csv").made.item()


def test_part_is_taken_up_for_the_same_settings_alone(profile, capsys):
    calls = []
    assert made(profile, "one", calls, rate=0.1) == 0
    assert made(profile, "one", calls, rate=0.1) == 0 and len(calls) == 1
    assert "one: taken up from " in capsys.readouterr().out
    assert made(profile, "one", calls, rate=0.2) == 1
    assert made(dataclasses.replace(profile, seed=5), "one", calls, rate=0.2) == 2
    assert made(dataclasses.replace(profile, seed=5, dataset="other"), "one", calls, rate=0.2) == 3


def test_part_is_made_anew_after_one_that_it_starts_from_has_changed(profile):
    calls = []
    for first, second, expected in (("a", "x", 2), ("a", "x", 2), ("b", "x", 4), ("b", "y", 5)):
        made(profile, "one", calls, rate=first)
        made(profile, "two", calls, after=["one"], rate=second)
        assert len(calls) == expected


def test_part_that_is_not_as_it_was_saved_is_refused_by_name(profile):
    made(profile, "one", [], rate=1)
    (outputs.checkpoint_path(profile, "one") / "table.csv").write_text("made\n")
    with pytest.raises(ValueError, match=r"smoke/one: table.csv has 5 bytes, and 9 were saved; delete it and run"):
        made(profile, "one", [], rate=1)


def test_part_that_is_saved_leaves_nothing_to_go_on_from(profile):
    (outputs.training_dir(profile) / "one").mkdir(parents=True)
    made(profile, "one", [])
    assert not outputs.training_dir(profile).exists()


def test_part_that_failed_leaves_the_old_one(profile):
    calls = []
    made(profile, "one", calls, rate=1)

    def fail():
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError):
        recipes.part(profile, "one", fail, rate=2)
    assert made(profile, "one", calls, rate=1) == 0
    with pytest.raises(FileNotFoundError, match="none"):
        recipes.part(profile, "three", fail, after=["none"])


def test_part_says_what_it_was_made_from(profile):
    made(profile, "one", [], rate=0.1)
    note = json.loads((outputs.checkpoint_path(profile, "one") / "part.json").read_text())
    made_from = note["made_from"]
    assert made_from["settings"] == {"rate": 0.1} and made_from["seed"] == profile.seed
    assert made_from["model"] == profile.model


def test_costs_are_those_of_the_parts_in_the_order_in_which_they_were_made(profile):
    calls = []
    for name in ("two", "one"):
        made(profile, name, calls, rate=1)
    made(profile, "two", calls, rate=1)  # taken up: it keeps what it took
    table = recipes.costs(profile)
    assert list(table.part) == ["two", "one"] and (table.seconds >= 0).all() and len(calls) == 2


def test_beginnings_are_the_first_tokens_and_shorter_sentences_are_left_out(tokenizer):
    ids = dict(zip(SENTENCES, encode(tokenizer, SENTENCES), strict=True))
    found = recipes.beginnings(tokenizer, SENTENCES * 30, seed=1)
    lengths = {len(row) for row in found}
    assert lengths == set(range(2, 9)) and all(any(row == own[: len(row)] for own in ids.values()) for row in found)
    assert all(any(row == own[: len(row)] and len(own) > len(row) for own in ids.values()) for row in found)
    assert (
        found
        == recipes.beginnings(tokenizer, SENTENCES * 30, seed=1)
        != recipes.beginnings(tokenizer, SENTENCES * 30, seed=2)
    )
    assert recipes.beginnings(tokenizer, ["ab"], seed=0, tokens=(600, 700)) == []


@torch.no_grad()
def test_log_probability_of_a_sentence_is_that_of_all_tokens_after_the_first_with_its_end(policy, tokenizer):
    nats, tokens = recipes.sentence_logprobs(policy, tokenizer, SENTENCES, batch_size=3)
    for sentence, nat, count in zip(SENTENCES, nats, tokens, strict=True):
        ids = torch.tensor([[*tokenizer(sentence)["input_ids"], tokenizer.eos_token_id]])
        logprobs = policy(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])
        assert nat == pytest.approx(logprobs.sum().item(), abs=1e-4) and count == len(logprobs)


def test_what_a_policy_goes_on_with_is_measured_against_the_reference(profile, policy, tokenizer):
    starts = recipes.beginnings(tokenizer, SENTENCES * 3, seed=0)
    same = recipes.continued(profile, policy, policy, tokenizer, starts)
    assert (same.kl.abs() < 1e-4).all()
    moved = models.adapters.sharing_copy(policy)
    with torch.no_grad():
        for weight in moved.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    rows = recipes.continued(profile, moved, policy, tokenizer, starts)
    assert list(rows.columns) == ["beginning", "sentence", "ended", "words", "kl", "perplexity", "repetition"]
    assert len(rows) == len(starts) and rows.kl.mean() > 0.01 and rows.ended.dtype == bool
    for row, start in zip(rows.itertuples(), starts, strict=True):
        assert row.sentence.startswith(tokenizer.decode(start).strip()) and row.words == len(row.sentence.split())
        assert 1 < row.perplexity < 1e6


def test_perplexity_is_that_of_what_was_written(profile, policy, tokenizer, monkeypatch):
    start, rest = tokenizer("a stirring")["input_ids"], [7, 9, tokenizer.eos_token_id]
    answer = recipes.Answer(tokenizer.decode(rest), tuple(rest), True)
    monkeypatch.setattr(recipes.generation, "generate_answers", lambda *a, **k: [answer])
    row = recipes.continued(profile, policy, policy, tokenizer, [start]).iloc[0]
    with torch.no_grad():
        logprobs = policy(torch.tensor([start + rest])).logits[0].log_softmax(-1)
    by_hand = [logprobs[len(start) - 1 + i, token].item() for i, token in enumerate(rest)]
    assert row.perplexity == pytest.approx(np.exp(-np.mean(by_hand)), rel=1e-4)


@pytest.mark.parametrize(
    ("text", "share"),
    [("a b c", 0), ("a b a b", 1 / 3), ("so so so so", 2 / 3), ("one", 0), ("", 0), ("A b a B", 1 / 3)],
)
def test_repetition_by_hand(text, share):
    assert recipes.repetition(text) == pytest.approx(share)


def test_score_is_read_at_the_last_token_and_lies_between_minus_one_and_one(reward_model, tokenizer):
    logits = recipes.label_logits(reward_model, tokenizer, SENTENCES)
    for sentence, logit in zip(SENTENCES, logits, strict=True):
        with torch.no_grad():
            states = trunk_of(reward_model)(torch.tensor([tokenizer(sentence)["input_ids"]])).last_hidden_state
            assert logit == pytest.approx(reward_model.score(states[0, -1]).item(), abs=1e-4)
    scores = recipes.label_scores(reward_model, tokenizer, SENTENCES)
    np.testing.assert_allclose(scores, np.tanh(logits / 2), atol=1e-6)


def test_judge_learns_words_and_pairs_of_words():
    labels = [1, 0, 1, 0]
    judge = recipes.word_judge(["a good film", "a bad film", "not bad at all", "not good at all"], labels)
    assert list(judge.predict(["good film", "bad film", "not bad", "not good"])) == labels


def test_settings_follow_the_size_of_the_profile(profile):
    settings = Settings(60, 64, 32, 2, 2, 1e-5, warmup_updates=3)
    small = recipes.sized(settings, profile)
    assert (small.updates, small.batch_size, small.micro_batch_size, small.warmup_updates) == (4, 8, 8, 2)
    assert small.max_new_tokens == profile.decoding.max_new_tokens and small.learning_rate == 1e-5
    large = dataclasses.replace(
        profile, max_steps=None, decoding=dataclasses.replace(profile.decoding, batch_size=100, max_new_tokens=96)
    )
    assert recipes.sized(settings, large) == settings


def test_model_that_can_only_be_trained_by_adapters_is_refused(profile_with_base, monkeypatch):
    outputs.update_run(profile_with_base, by_adapters=True)
    with pytest.raises(ValueError, match=r"model 'lab' is too large for the memory that is there.*RLHF_MODEL"):
        recipes.prepare(profile_with_base)


def test_answers_of_a_policy_are_those_of_the_sampler_and_its_own_reference_is_no_distance_away(
    profile, policy, tokenizer
):
    rows = recipes.answered(profile, policy, policy, tokenizer, ["What is it?", "Why?"])
    assert list(rows.columns) == ["prompt", "answer", "ended", "words", "kl", "repetition"]
    assert (rows.kl.abs() < 1e-4).all() and list(rows.words) == [len(answer.split()) for answer in rows.answer]
    options = {"max_new_tokens": profile.decoding.max_new_tokens, "batch_size": 1, "temperature": 1.0}
    expected = recipes.generation.generate_texts(policy, tokenizer, list(rows.prompt), seed=profile.seed, **options)
    assert list(rows.answer) == expected


def test_part_of_another_encoder_is_made_anew(profile):
    calls = []
    for encoder, count in (("own", 1), ("own", 1), ("other", 2)):
        made(dataclasses.replace(profile, encoder=encoder), "one", calls)
        assert len(calls) == count


def test_table_keeps_every_text_and_kind_of_value(tmp_path):
    frame = pd.DataFrame({"text": ["a\rb", "c\n,d", "", 'say "no"', "1"], "ended": [True, False] * 2 + [True]})
    recipes.Table("table.csv", frame.assign(kl=0.1)).save_pretrained(tmp_path)
    read = pd.read_csv(tmp_path / "table.csv", keep_default_na=False)
    assert list(read.text) == list(frame.text) and list(read.ended) == list(frame.ended) and read.kl.dtype == float
