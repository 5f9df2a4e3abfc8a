"""Preference pairs as the tokens that a reward model reads, and the order in which it is trained on them."""

import dataclasses
import random

from rlhf import models
from rlhf.data import load_preferences
from rlhf.reward import pairs as reward_pairs
from rlhf.reward.scoring import encode

import pytest
from conftest import stage_module
from datasets import Dataset, DatasetDict


@pytest.fixture
def preferences(profile_with_sft):
    tokenizer = models.load_tokenizer(profile_with_sft)
    return profile_with_sft, tokenizer, reward_pairs.load_pairs(profile_with_sft, tokenizer)


def test_reward_data_are_the_tokens_that_are_scored_later(preferences):
    profile, tokenizer, splits = preferences
    pairs = load_preferences(profile)
    for name, rows in splits.items():
        assert rows["prompt"] == pairs[name]["prompt"]
        for side in ("chosen", "rejected"):
            assert rows[f"{side}_ids"] == encode(
                tokenizer, pairs[name]["prompt"], pairs[name][side], [True] * len(pairs[name])
            )


def test_pair_of_which_one_side_is_too_long_is_left_out_with_a_printed_line(profile_with_base, monkeypatch, capsys):
    long = "word " * 300
    columns = {"prompt": ["A?", "B?", "C?"], "chosen": ["a", long, "c"], "rejected": ["x", "y", long]}
    monkeypatch.setattr(reward_pairs, "load_preferences", lambda _: {"test": Dataset.from_dict(columns)})
    tokenizer = models.load_tokenizer(profile_with_base)
    splits = reward_pairs.load_pairs(profile_with_base, tokenizer)
    assert splits["test"]["prompt"] == ["A?"]
    assert capsys.readouterr().out.startswith("test pairs: 2 of 3 rows are longer than")


def test_order_of_training_has_every_text_once_in_batches_of_similar_length():
    rng = random.Random(0)
    lengths = [rng.randint(5, 90) for _ in range(160)]  # one run of 20 batches of 8
    order = reward_pairs.training_order(lengths, batch_size=8, seed=0)
    assert sorted(order) == list(range(160))
    batches = [sorted(lengths[i] for i in order[start : start + 8]) for start in range(0, 160, 8)]
    assert [length for batch in sorted(batches) for length in batch] == sorted(lengths)
    assert batches != sorted(batches)  # not from short to long


@pytest.mark.parametrize("batch_size", [2, 8])
def test_texts_that_belong_together_stay_in_one_batch(batch_size):
    rng = random.Random(0)
    order = reward_pairs.training_order([rng.randint(5, 90) for _ in range(100)], batch_size, seed=0, together=2)
    assert sorted(order) == list(range(100))
    assert all(first % 2 == 0 and second == first + 1 for first, second in zip(order[::2], order[1::2], strict=True))


def test_order_of_training_follows_its_seed():
    orders = [reward_pairs.training_order([7] * 100, batch_size=8, seed=seed) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_mismatched_answer_belongs_to_a_prompt_near_by_in_the_order_of_first_or_last_words(preferences):
    shares = reward_pairs.BEGIN_ALIKE, reward_pairs.END_ALIKE
    assert sum(shares) == 1
    profile, tokenizer, splits = preferences
    train = splits["train"]
    mismatched = reward_pairs.mismatched_pairs(train, 0.4, profile, tokenizer)
    assert len(mismatched) == 0.4 * len(train)
    begins = {row["prompt"]: row["chosen"].split(".")[0] + "." for row in train}
    orders = [sorted(train["prompt"], key=lambda prompt: prompt.split()[::step]) for step in (1, -1)]
    nearby = [{frozenset(two) for two in zip(order, order[3:] + order[:3], strict=True)} for order in orders]
    swaps = [frozenset(prompts) for prompts in zip(mismatched["prompt"][::2], mismatched["prompt"][1::2], strict=True)]
    assert all(row["chosen"] == begins[row["prompt"]] for row in mismatched)
    assert all(swap in nearby[0] or swap in nearby[1] for swap in swaps)
    for near, share in zip(nearby, shares, strict=True):
        assert sum(swap in near for swap in swaps) >= round(share * 0.2 * len(train))
    for side in ("chosen", "rejected"):
        assert mismatched[f"{side}_ids"] == encode(
            tokenizer, mismatched["prompt"], mismatched[side], [True] * len(mismatched)
        )


def test_mismatched_pairs_are_couples_with_the_same_two_answers_each_chosen_once(preferences):
    profile, tokenizer, splits = preferences
    mismatched = reward_pairs.mismatched_pairs(splits["train"], 0.4, profile, tokenizer).to_list()
    for first, second in zip(mismatched[::2], mismatched[1::2], strict=True):
        assert (first["chosen"], first["rejected"]) == (second["rejected"], second["chosen"])
        assert first["prompt"] != second["prompt"]


def test_prompts_that_are_all_the_same_give_no_mismatched_pairs(preferences):
    profile, tokenizer, splits = preferences
    same = splits["train"].map(lambda _: {"prompt": "Why?"})
    assert len(reward_pairs.mismatched_pairs(same, 1.0, profile, tokenizer)) == 0
    assert sorted(reward_pairs.training_pairs(profile, tokenizer, same)["chosen"]) == sorted(same["chosen"])


def test_mismatched_answer_is_never_an_answer_to_the_same_prompt(preferences):
    profile, tokenizer, _ = preferences
    answers = [f"Answer {i}." for i in range(12)]
    columns = {"prompt": ["Why?"] * 6 + ["How?"] * 6, "chosen": answers, "rejected": ["x"] * 12}
    mismatched = reward_pairs.mismatched_pairs(Dataset.from_dict(columns), 1.0, profile, tokenizer)
    # Six neighbours in each order ask different things; three of them are drawn, and make a couple each.
    assert len(mismatched) == 12
    for row in mismatched:
        assert (row["prompt"] == "Why?") == (row["rejected"] in answers[6:])


def test_mismatched_pair_that_is_too_long_is_left_out_with_a_printed_line(preferences, capsys):
    profile, tokenizer, _ = preferences
    columns = {"prompt": [f"Question {i}?" for i in range(8)], "chosen": ["a", *"bcdefg", "word " * 300]}
    pairs = Dataset.from_dict(columns | {"rejected": ["x"] * 8})
    mismatched = reward_pairs.mismatched_pairs(pairs, 8.0, profile, tokenizer)
    # Of the eight neighbours in each order, two have the long answer: both pairs of these couples are left out.
    assert len(mismatched) == 24
    assert max(len(text) for row in mismatched for text in (row["chosen"], row["rejected"])) == 1
    assert capsys.readouterr().out.startswith("mismatched pairs: 8 of 32 rows are longer than")


def test_mismatched_pairs_fit_into_the_context_of_the_model(preferences, capsys):
    profile, tokenizer, _ = preferences
    columns = {"prompt": [f"Question {i}?" for i in range(8)], "chosen": ["a", *"bcdefg", "word " * 60]}
    pairs = Dataset.from_dict(columns | {"rejected": ["x"] * 8})
    tokenizer.model_max_length = 60
    assert len(reward_pairs.mismatched_pairs(pairs, 8.0, profile, tokenizer)) == 24
    assert capsys.readouterr().out == "mismatched pairs: 8 of 32 rows are longer than 60 tokens and are left out\n"


def test_data_for_fine_tuning_alone_say_what_they_lack(profile_with_base, tokenizer, monkeypatch):
    rows = Dataset.from_dict({"prompt": ["Why?"], "chosen": ["Because."], "rejected": [""]})
    splits = DatasetDict(dict.fromkeys(("train", "validation", "test"), rows))
    monkeypatch.setattr(reward_pairs, "load_preferences", lambda _: splits)
    with pytest.raises(ValueError, match=r"no rejected answers: it serves fine-tuning .* alone"):
        reward_pairs.load_pairs(profile_with_base, tokenizer)


def test_training_begins_with_the_mismatched_pairs_and_then_sees_every_pair_once(preferences):
    profile, tokenizer, splits = preferences
    train = splits["train"]
    first = reward_pairs.mismatched_pairs(train, profile.reward.mismatched_first, profile, tokenizer)
    seen = reward_pairs.training_pairs(profile, tokenizer, train)
    texts = [[(row["prompt"], row["rejected"]) for row in rows] for rows in (first, train, seen)]
    assert len(first) > 0
    assert sorted(texts[2][: len(first)]) == sorted(texts[0])
    assert sorted(texts[2][len(first) :]) == sorted(texts[1])
    couples = zip(seen["chosen"][: len(first) : 2], seen["rejected"][1 : len(first) : 2], strict=True)
    assert all(chosen == rejected for chosen, rejected in couples)

    without = dataclasses.replace(profile, reward=dataclasses.replace(profile.reward, mismatched_first=0.0))
    assert sorted(reward_pairs.training_pairs(without, tokenizer, train)["rejected"]) == sorted(train["rejected"])


def test_length_differences_and_kinds_of_error_are_counted(profile_with_base):
    data_pipeline = stage_module("02_reward_modeling/data_pipeline.py")
    pairs = Dataset.from_dict({"chosen": ["a b c", "a", "a b"], "rejected": ["a", "a", "a b c d e"]})
    frame = data_pipeline["length_differences"](pairs)
    assert list(frame.itertuples(index=False, name=None)) == [(-3, 1), (0, 1), (2, 1)]
    rows = load_preferences(profile_with_base)["test"]
    kinds = data_pipeline["by_error"](profile_with_base, rows)
    assert kinds.n.sum() == len(rows) and kinds.share.sum() == pytest.approx(1)
    assert list(kinds.columns) == ["error", "share", "n", "length_rule", "gold_agreement"]
