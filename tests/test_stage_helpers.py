"""The helper modules of the three stages: what is learned from which tokens, and trainers that learn it."""

import copy
import dataclasses
import random
from types import SimpleNamespace

from rlhf import models, outputs
from rlhf.data import load_preferences
from rlhf.rewards import encode, score
from rlhf.template import format_prompt

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import import_stage
from datasets import Dataset

sft_data = import_stage("01_supervised_finetuning/prepare_data.py")
finetune = import_stage("01_supervised_finetuning/finetune.py")
reward_data = import_stage("02_reward_modeling/data_pipeline.py")
train_reward = import_stage("02_reward_modeling/train_reward.py")
ppo_data = import_stage("03_ppo_alignment/prepare_data.py")
ppo_config = import_stage("03_ppo_alignment/ppo_config.py")
ppo_trl = import_stage("03_ppo_alignment/ppo_trl.py")

IGNORED = -100
EXAMPLES = Dataset.from_dict(
    {
        "prompt": [format_prompt("How do I roast tofu slices?"), format_prompt("Why?")],
        "completion": ["First, heat the oven.\nThen wait.", "Because 日本."],
    }
)


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """float32, so that losses can be compared with those by hand."""
    monkeypatch.setattr(models, "use_bf16", lambda: False)
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")  # the trainers set it; restored after each test


def rows_of(tokenized):
    return zip(tokenized["input_ids"], tokenized["labels"], strict=True)


# Stage 1: data


def test_sft_examples_are_the_chosen_answers_in_the_template(profile_with_base):
    splits = sft_data.get_sft_datasets(profile_with_base)
    pairs = load_preferences(profile_with_base)
    assert list(splits) == ["train", "validation", "test"]
    for name, rows in splits.items():
        assert rows.column_names == ["prompt", "completion"]
        assert rows["prompt"] == [format_prompt(prompt) for prompt in pairs[name]["prompt"]]
        assert rows["completion"] == pairs[name]["chosen"]


def test_prompt_with_several_pairs_gives_one_example_per_distinct_answer(profile_with_base, monkeypatch):
    rows = Dataset.from_dict({"prompt": ["Why?"] * 3, "chosen": ["A.", "A.", "B."], "rejected": ["1", "2", "3"]})
    monkeypatch.setattr(sft_data, "load_preferences", lambda _: {"train": rows})
    examples = sft_data.get_sft_datasets(profile_with_base)["train"]
    assert examples["completion"] == ["A.", "B."]


def test_example_that_is_too_long_is_left_out_with_a_printed_line(profile_with_base, monkeypatch, capsys):
    rows = Dataset.from_dict({"prompt": ["Why?", "How?"], "chosen": ["A.", "word " * 300], "rejected": ["1", "2"]})
    monkeypatch.setattr(sft_data, "load_preferences", lambda _: {"train": rows})
    examples = sft_data.get_sft_datasets(profile_with_base)["train"]
    assert examples["completion"] == ["A."]
    limit = profile_with_base.sft.max_length
    expected = f"train examples: 1 of 2 rows are longer than {limit} tokens and are left out\n"
    assert capsys.readouterr().out == expected


def test_loss_sees_the_completion_with_its_eos_and_nothing_of_the_prompt(tokenizer):
    tokenized = sft_data.tokenize(EXAMPLES, tokenizer)
    for example, (ids, labels) in zip(EXAMPLES, rows_of(tokenized), strict=True):
        prompt = tokenizer(example["prompt"])["input_ids"]
        assert ids[: len(prompt)] == prompt
        assert labels[: len(prompt)] == [IGNORED] * len(prompt)
        assert labels[len(prompt) :] == ids[len(prompt) :]
        assert ids[-1] == labels[-1] == tokenizer.eos_token_id
        assert ids.count(tokenizer.eos_token_id) == 1


def test_labels_decode_to_the_completion_and_eos(tokenizer):
    for example, (_, labels) in zip(EXAMPLES, rows_of(sft_data.tokenize(EXAMPLES, tokenizer)), strict=True):
        learned = [label for label in labels if label != IGNORED]
        assert tokenizer.decode(learned) == example["completion"] + tokenizer.eos_token


def test_tokens_of_sft_are_those_of_the_reward_model(tokenizer):
    ids = sft_data.tokenize(EXAMPLES, tokenizer)["input_ids"]
    assert ids == encode(tokenizer, ["How do I roast tofu slices?", "Why?"], EXAMPLES["completion"])


def test_without_ending_there_is_no_eos(tokenizer):
    with_eos = sft_data.tokenize(EXAMPLES, tokenizer, "eos")
    without = sft_data.tokenize(EXAMPLES, tokenizer, "none")
    for column in ("input_ids", "labels"):
        assert without[column] == [row[:-1] for row in with_eos[column]]


def test_with_pad_as_eos_the_model_reads_eos_and_does_not_learn_it(tokenizer):
    with_eos = sft_data.tokenize(EXAMPLES, tokenizer, "eos")
    masked = sft_data.tokenize(EXAMPLES, tokenizer, "pad_is_eos")
    assert masked["input_ids"] == with_eos["input_ids"]
    assert masked["labels"] == [[*row[:-1], IGNORED] for row in with_eos["labels"]]


def test_unknown_ending_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"'stop'.*eos, none, pad_is_eos"):
        sft_data.tokenize(EXAMPLES, tokenizer, "stop")


# Stage 1: training


@pytest.fixture
def sft(profile_with_base):
    """A profile that trains 24 steps, its tokenizer, and tokenised train and validation examples."""
    profile = dataclasses.replace(profile_with_base, max_steps=24)
    tokenizer = models.load_tokenizer(profile)
    splits = sft_data.get_sft_datasets(profile)
    return (profile, tokenizer, *(sft_data.tokenize(splits[name], tokenizer) for name in ("train", "validation")))


@torch.no_grad()
def loss_by_hand(model, examples):
    """Mean over all learned tokens of -log p(token | all before it), one example at a time."""
    losses = []
    for ids, labels in rows_of(examples):
        logprobs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        learned = [i for i, label in enumerate(labels) if label != IGNORED]
        losses += [-logprobs[i - 1, labels[i]].item() for i in learned]
    return np.mean(losses)


@pytest.mark.parametrize("ending", ["eos", "none", "pad_is_eos"])
def test_validation_loss_is_that_of_the_learned_tokens_alone(sft, ending):
    profile, tokenizer, train, _ = sft
    part = sft_data.get_sft_datasets(profile)["validation"].select(range(profile.sft.batch_size))
    examples = sft_data.tokenize(part, tokenizer, ending)
    model = models.load_base(profile)
    trainer = finetune.make_trainer(profile, "check", model, tokenizer, train, examples, learning_rate=1e-3)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(loss_by_hand(model.eval(), examples), rel=1e-3)


def test_full_finetuning_lowers_both_losses_and_writes_tensorboard_files(sft):
    profile, tokenizer, train, validation = sft
    model = models.load_base(profile)
    before = loss_by_hand(model.eval(), validation)
    trainer = finetune.make_trainer(
        profile, "sft_full", model, tokenizer, train, validation, learning_rate=3e-3, epochs=2
    )
    trainer.train()
    assert loss_by_hand(trainer.model.eval(), validation) < before - 0.3
    curve = finetune.loss_curve(trainer, "sft_full")
    assert list(curve.columns) == ["run", "split", "step", "loss"]
    train_loss = curve.query("split == 'train'").loss
    assert len(train_loss) >= 10 and train_loss.iloc[-1] < train_loss.iloc[0] - 0.3
    validation_rows = curve.query("split == 'validation'")
    assert len(validation_rows) == profile.sft.evaluations and validation_rows.step.iloc[-1] == 24
    assert list((outputs.logs_dir(profile) / "sft_full").rglob("events.out.tfevents.*"))


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_adapter_training_lowers_the_loss_and_leaves_the_base_as_it_was(sft, method):
    profile, tokenizer, train, validation = sft
    model, adapter = finetune.start_model(profile, method)
    frozen = {n: p.detach().clone() for n, p in model.named_parameters()}
    before = loss_by_hand(model, validation)
    trainer = finetune.make_trainer(
        profile, method, model, tokenizer, train, validation, learning_rate=1e-2, epochs=2, adapter=adapter
    )
    trainable = {name: p.dtype for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert trainable and all("lora_" in name for name in trainable)
    assert set(trainable.values()) == {torch.float32}  # small steps would be rounded away in bfloat16
    trainer.train()
    losses = finetune.loss_curve(trainer, method).query("split == 'validation'").loss
    assert losses.iloc[-1] < before - 0.01
    now = {
        n.removeprefix("base_model.model.").replace(".base_layer", ""): p for n, p in trainer.model.named_parameters()
    }
    assert all(torch.equal(now[name].detach(), value) for name, value in frozen.items())


def adapter_parameters(width, r, layers=2):
    shapes = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    return layers * sum(r * (inside + outside) for inside, outside in shapes)


def test_cost_of_each_method_is_counted_as_by_hand(sft):
    profile, tokenizer, train, _ = sft
    costs = {m: finetune.measure_cost(profile, m, tokenizer, train, steps=2) for m in finetune.METHODS}
    everything = models.trainable_parameters(models.load_base(profile))
    adapter = adapter_parameters(profile.lab.width, profile.sft.lora.r)
    assert costs["full"]["trainable_parameters"] == everything
    assert costs["lora"]["trainable_parameters"] == costs["qlora"]["trainable_parameters"] == adapter
    # Weights and gradients of four bytes, and Adam's two moments.
    assert costs["full"]["memory_megabytes"] == pytest.approx(4 * 4 * everything / 1e6, rel=1e-3)
    assert costs["lora"]["weight_megabytes"] == pytest.approx(4 * (everything + adapter) / 1e6)
    assert costs["qlora"]["weight_megabytes"] < costs["lora"]["weight_megabytes"]
    for method in ("lora", "qlora"):
        state = costs[method]["memory_megabytes"] - costs[method]["weight_megabytes"]
        assert state == pytest.approx(3 * 4 * adapter / 1e6, rel=1e-2)
    assert costs["lora"]["memory_megabytes"] < costs["full"]["memory_megabytes"]
    for method, cost in costs.items():
        assert cost["method"] == method and cost["seconds_per_step"] > 0


def test_unknown_method_is_refused(profile_with_base):
    with pytest.raises(ValueError, match=r"'half'.*full, lora, qlora"):
        finetune.start_model(profile_with_base, "half")


def test_search_tries_each_rate_from_the_same_start_and_the_lowest_loss_wins(sft):
    profile, tokenizer, train, validation = sft
    settings = dataclasses.replace(profile.sft, full_learning_rates=(1e-12, 3e-3), search_share=0.5)
    profile = dataclasses.replace(profile, sft=settings)
    validation = validation.select(range(8))
    searched = finetune.search_learning_rate(profile, "full", tokenizer, train, validation)
    assert list(searched.columns) == ["method", "learning_rate", "validation_loss"]
    assert searched.method.tolist() == ["full", "full"] and searched.learning_rate.tolist() == [1e-12, 3e-3]
    untrained = loss_by_hand(models.load_base(profile).eval(), validation)
    assert searched.validation_loss[0] == pytest.approx(untrained, rel=1e-3)
    assert searched.validation_loss[1] < searched.validation_loss[0]
    assert finetune.best_learning_rate(searched) == 3e-3


def test_best_learning_rate_is_that_of_the_lowest_loss_and_never_of_a_run_that_diverged():
    searched = pd.DataFrame({"learning_rate": [1e-4, 1e-3, 1e-2], "validation_loss": [2.0, 1.5, float("nan")]})
    assert finetune.best_learning_rate(searched) == 1e-3


def test_share_of_the_examples_is_the_same_for_the_same_seed():
    examples = Dataset.from_dict({"x": list(range(100))})
    part = finetune.share_of(examples, 0.25, seed=1)["x"]
    assert len(set(part)) == 25 and part == finetune.share_of(examples, 0.25, seed=1)["x"]
    assert part != finetune.share_of(examples, 0.25, seed=2)["x"]
    assert len(finetune.share_of(examples, 0.01, seed=1)) == 8
    assert len(finetune.share_of(examples.select(range(3)), 0.01, seed=1)) == 3


# Stage 2


@pytest.fixture
def preferences(profile_with_sft):
    tokenizer = models.load_tokenizer(profile_with_sft)
    return profile_with_sft, tokenizer, reward_data.prepare_reward_dataset(profile_with_sft, tokenizer)


def test_reward_data_are_the_tokens_that_are_scored_later(preferences):
    profile, tokenizer, splits = preferences
    pairs = load_preferences(profile)
    for name, rows in splits.items():
        assert rows["prompt"] == pairs[name]["prompt"]
        for side in ("chosen", "rejected"):
            assert rows[f"{side}_ids"] == encode(tokenizer, pairs[name]["prompt"], pairs[name][side])


def test_pair_of_which_one_side_is_too_long_is_left_out_with_a_printed_line(profile_with_base, monkeypatch, capsys):
    long = "word " * 300
    columns = {"prompt": ["A?", "B?", "C?"], "chosen": ["a", long, "c"], "rejected": ["x", "y", long]}
    monkeypatch.setattr(reward_data, "load_preferences", lambda _: {"test": Dataset.from_dict(columns)})
    tokenizer = models.load_tokenizer(profile_with_base)
    splits = reward_data.prepare_reward_dataset(profile_with_base, tokenizer)
    assert splits["test"]["prompt"] == ["A?"]
    assert capsys.readouterr().out.startswith("test pairs: 2 of 3 rows are longer than")


def test_order_of_training_has_every_text_once_in_batches_of_similar_length():
    rng = random.Random(0)
    lengths = [rng.randint(5, 90) for _ in range(160)]  # one run of 20 batches of 8
    order = reward_data.training_order(lengths, batch_size=8, seed=0)
    assert sorted(order) == list(range(160))
    batches = [sorted(lengths[i] for i in order[start : start + 8]) for start in range(0, 160, 8)]
    assert [length for batch in sorted(batches) for length in batch] == sorted(lengths)
    assert batches != sorted(batches)  # not from short to long


@pytest.mark.parametrize("batch_size", [2, 8])
def test_texts_that_belong_together_stay_in_one_batch(batch_size):
    rng = random.Random(0)
    order = reward_data.training_order([rng.randint(5, 90) for _ in range(100)], batch_size, seed=0, together=2)
    assert sorted(order) == list(range(100))
    assert all(first % 2 == 0 and second == first + 1 for first, second in zip(order[::2], order[1::2], strict=True))


def test_order_of_training_follows_its_seed():
    orders = [reward_data.training_order([7] * 100, batch_size=8, seed=seed) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_mismatched_answer_belongs_to_a_prompt_near_by_in_the_order_of_first_or_last_words(preferences):
    shares = reward_data.BEGIN_ALIKE, reward_data.END_ALIKE
    assert sum(shares) == 1
    profile, tokenizer, splits = preferences
    train = splits["train"]
    mismatched = reward_data.mismatched_pairs(train, 0.4, profile, tokenizer)
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
        assert mismatched[f"{side}_ids"] == encode(tokenizer, mismatched["prompt"], mismatched[side])


def test_mismatched_pairs_are_couples_with_the_same_two_answers_each_chosen_once(preferences):
    profile, tokenizer, splits = preferences
    mismatched = reward_data.mismatched_pairs(splits["train"], 0.4, profile, tokenizer).to_list()
    for first, second in zip(mismatched[::2], mismatched[1::2], strict=True):
        assert (first["chosen"], first["rejected"]) == (second["rejected"], second["chosen"])
        assert first["prompt"] != second["prompt"]


def test_prompts_that_are_all_the_same_give_no_mismatched_pairs(preferences):
    profile, tokenizer, splits = preferences
    same = splits["train"].map(lambda _: {"prompt": "Why?"})
    assert len(reward_data.mismatched_pairs(same, 1.0, profile, tokenizer)) == 0
    assert sorted(reward_data.training_pairs(profile, tokenizer, same)["chosen"]) == sorted(same["chosen"])


def test_mismatched_answer_is_never_an_answer_to_the_same_prompt(preferences):
    profile, tokenizer, _ = preferences
    answers = [f"Answer {i}." for i in range(12)]
    columns = {"prompt": ["Why?"] * 6 + ["How?"] * 6, "chosen": answers, "rejected": ["x"] * 12}
    mismatched = reward_data.mismatched_pairs(Dataset.from_dict(columns), 1.0, profile, tokenizer)
    # Six neighbours in each order ask different things; three of them are drawn, and make a couple each.
    assert len(mismatched) == 12
    for row in mismatched:
        assert (row["prompt"] == "Why?") == (row["rejected"] in answers[6:])


def test_mismatched_pair_that_is_too_long_is_left_out_with_a_printed_line(preferences, capsys):
    profile, tokenizer, _ = preferences
    columns = {"prompt": [f"Question {i}?" for i in range(8)], "chosen": ["a", *"bcdefg", "word " * 300]}
    pairs = Dataset.from_dict(columns | {"rejected": ["x"] * 8})
    mismatched = reward_data.mismatched_pairs(pairs, 8.0, profile, tokenizer)
    # Of the eight neighbours in each order, two have the long answer: both pairs of these couples are left out.
    assert len(mismatched) == 24
    assert max(len(text) for row in mismatched for text in (row["chosen"], row["rejected"])) == 1
    assert capsys.readouterr().out.startswith("mismatched pairs: 8 of 32 rows are longer than")


def test_training_begins_with_the_mismatched_pairs_and_then_sees_every_pair_once(preferences):
    profile, tokenizer, splits = preferences
    train = splits["train"]
    first = reward_data.mismatched_pairs(train, profile.reward.mismatched_first, profile, tokenizer)
    seen = reward_data.training_pairs(profile, tokenizer, train)
    texts = [[(row["prompt"], row["rejected"]) for row in rows] for rows in (first, train, seen)]
    assert len(first) > 0
    assert sorted(texts[2][: len(first)]) == sorted(texts[0])
    assert sorted(texts[2][len(first) :]) == sorted(texts[1])
    couples = zip(seen["chosen"][: len(first) : 2], seen["rejected"][1 : len(first) : 2], strict=True)
    assert all(chosen == rejected for chosen, rejected in couples)

    without = dataclasses.replace(profile, reward=dataclasses.replace(profile.reward, mismatched_first=0.0))
    assert sorted(reward_data.training_pairs(without, tokenizer, train)["rejected"]) == sorted(train["rejected"])


@pytest.fixture
def reward_trainer(profile_with_sft, monkeypatch):
    """A trainer on pairs that the last word tells apart, which a few steps are enough to learn."""
    settings = dataclasses.replace(profile_with_sft.reward, learning_rate=1e-2, mismatched_first=0.0)
    profile = dataclasses.replace(profile_with_sft, max_steps=24, reward=settings)
    easy = {
        name: rows.map(lambda row: {"chosen": f"{row['chosen'][:40]} yes", "rejected": f"{row['chosen'][:40]} no"})
        for name, rows in load_preferences(profile).items()
    }
    monkeypatch.setattr(reward_data, "load_preferences", lambda _: easy)
    tokenizer = models.load_tokenizer(profile)
    splits = reward_data.prepare_reward_dataset(profile, tokenizer)
    validation = splits["validation"].select(range(settings.batch_size))
    model = models.new_reward_model(profile, seed=0)
    return (
        profile,
        tokenizer,
        validation,
        train_reward.make_trainer(
            profile, model, tokenizer, reward_data.training_pairs(profile, tokenizer, splits["train"]), validation
        ),
    )


def margins(model, tokenizer, rows):
    chosen = score(model, tokenizer, rows["prompt"], rows["chosen"])
    return chosen - score(model, tokenizer, rows["prompt"], rows["rejected"])


def test_reward_trainer_reads_the_same_scores_as_the_evaluation(reward_trainer):
    profile, tokenizer, validation, trainer = reward_trainer
    both = [score(trainer.model, tokenizer, validation["prompt"], validation[side]) for side in ("chosen", "rejected")]
    margin = both[0] - both[1]
    measured = trainer.evaluate()
    assert profile.reward.centering > 0
    loss = np.log1p(np.exp(-margin)).mean() + profile.reward.centering * ((both[0] + both[1]) ** 2).mean()
    assert measured["eval_loss"] == pytest.approx(loss, abs=1e-5)
    assert measured["eval_accuracy"] == pytest.approx((margin > 0).mean())


def test_reward_training_lowers_the_loss_and_trains_adapter_and_head_alone(reward_trainer):
    profile, tokenizer, validation, trainer = reward_trainer
    trainable = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert any("score" in name for name in trainable)
    assert all("lora_" in name or "score" in name for name in trainable)
    trainer.train()
    curve = train_reward.training_curve(trainer)
    assert list(curve.columns) == ["split", "step", "loss", "accuracy"]
    assert np.isfinite(curve.loss).all() and curve.accuracy.between(0, 1).all()
    train_loss = curve.query("split == 'train'").loss
    assert train_loss.tail(6).mean() < train_loss.head(6).mean() - 0.1  # a batch has eight pairs: one alone is noise
    assert (curve.split == "validation").sum() == profile.reward.evaluations
    assert list((outputs.logs_dir(profile) / "reward_model").rglob("events.out.tfevents.*"))
    outputs.save_checkpoint(profile, "reward_model_final", trainer.model, tokenizer)
    expected = margins(trainer.model, tokenizer, validation)
    assert margins(models.load_reward_model(profile), tokenizer, validation) == pytest.approx(expected, abs=1e-5)


# Stage 3


def test_ppo_prompts_are_the_distinct_prompts_of_training_in_the_template(profile_with_base):
    tokenizer = models.load_tokenizer(profile_with_base)
    prompts = ppo_data.get_ppo_prompts(ppo_data.training_prompts(profile_with_base, tokenizer, 256), tokenizer)
    splits = load_preferences(profile_with_base)
    assert prompts.column_names == ["input_ids"]
    texts = tokenizer.batch_decode(list(prompts["input_ids"]))
    assert texts == [format_prompt(prompt) for prompt in splits["train"]["prompt"]]
    held_out = {format_prompt(p) for name in ("validation", "test") for p in splits[name]["prompt"]}
    assert not set(texts) & held_out


def test_ppo_prompts_stand_once_each_and_leave_room_for_an_answer(profile_with_base, monkeypatch, capsys):
    columns = {"prompt": ["Why?", "Why?", "word " * 240, "How?"], "chosen": ["a"] * 4, "rejected": ["b"] * 4}
    monkeypatch.setattr(ppo_data, "load_preferences", lambda _: {"train": Dataset.from_dict(columns)})
    tokenizer = models.load_tokenizer(profile_with_base)
    prompts = ppo_data.get_ppo_prompts(ppo_data.training_prompts(profile_with_base, tokenizer, 256), tokenizer)
    assert tokenizer.batch_decode(list(prompts["input_ids"])) == [format_prompt("Why?"), format_prompt("How?")]
    assert "PPO prompts: 1 of 4 rows" in capsys.readouterr().out
    longest = max(map(len, prompts["input_ids"]))
    assert longest + profile_with_base.decoding.max_new_tokens <= tokenizer.model_max_length


def test_ppo_prompts_longer_than_asked_are_left_out_with_a_printed_line(profile_with_base, capsys):
    tokenizer = models.load_tokenizer(profile_with_base)
    everything = ppo_data.training_prompts(profile_with_base, tokenizer, 256)
    lengths = [len(tokenizer(format_prompt(prompt))["input_ids"]) for prompt in everything]
    limit = sorted(lengths)[len(lengths) // 2]
    kept = ppo_data.training_prompts(profile_with_base, tokenizer, limit)
    expected = [prompt for prompt, length in zip(everything, lengths, strict=True) if length <= limit]
    assert kept == expected and len(kept) < len(everything)
    assert f"longer than {limit} tokens" in capsys.readouterr().out


def test_every_profile_has_ppo_settings_and_max_steps_cuts_them_short(profile):
    from rlhf.profiles import PROFILES, load_profile

    for name in PROFILES:
        settings = ppo_config.get_settings(dataclasses.replace(load_profile(name), max_steps=None))
        assert settings.batch_size % settings.mini_batches == 0
        assert settings.batch_size % settings.micro_batch_size == 0
        # Where TRL 1.12 accumulates gradients, more than one mini-batch means half of the optimiser steps.
        assert settings.mini_batches == 1 or settings.micro_batch_size == settings.batch_size
        assert ppo_config.get_settings(dataclasses.replace(load_profile(name), max_steps=1)).updates == 1
        longer = dataclasses.replace(load_profile(name), max_steps=10**6)
        assert ppo_config.get_settings(longer) == settings


def test_rollouts_are_recorded_as_counted_by_hand_and_generate_is_given_back(tokenizer):
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    sequences = torch.tensor([[9, 9, 5, 6, eos, pad], [9, 9, 5, eos, pad, pad], [9, 9, 5, 6, 7, 8]])

    class Policy:
        def generate(self, input_ids, **options):
            return SimpleNamespace(sequences=sequences, options=options)

    policy = Policy()
    with ppo_trl.record_rollouts(policy, tokenizer) as rollouts:
        generated = policy.generate(input_ids=sequences[:, :2], max_new_tokens=4)
    assert torch.equal(generated.sequences, sequences) and generated.options == {"max_new_tokens": 4}
    assert rollouts == [{"response_length": pytest.approx((3 + 2 + 4) / 3), "stop_rate": pytest.approx(2 / 3)}]
    policy.generate(input_ids=sequences[:, :2])
    assert len(rollouts) == 1


@pytest.fixture
def ppo(profile_with_sft):
    profile = dataclasses.replace(profile_with_sft, max_steps=2)
    tokenizer = models.load_tokenizer(profile)
    policy, reference = models.load_sft(profile), models.load_sft(profile)
    reward_model, value_model = (models.new_reward_model(profile, seed=0) for _ in range(2))
    prompts = ppo_data.get_ppo_prompts(ppo_data.training_prompts(profile, tokenizer, 256), tokenizer)
    return profile, [policy, reference, reward_model, value_model], tokenizer, prompts


def test_fewer_prompts_than_a_batch_are_refused(ppo):
    profile, four, tokenizer, prompts = ppo
    size = ppo_config.get_settings(profile).batch_size
    with pytest.raises(ValueError, match=f"{size - 1} prompts are fewer than a batch of {size}"):
        ppo_trl.make_trainer(profile, *four, tokenizer, prompts.select(range(size - 1)))


@pytest.mark.parametrize(("first", "second"), [(0, 1), (2, 3)])
def test_models_that_are_one_object_are_refused(ppo, first, second):
    profile, four, tokenizer, prompts = ppo
    four[second] = four[first]
    with pytest.raises(ValueError, match="four separate models"):
        ppo_trl.make_trainer(profile, *four, tokenizer, prompts)


@pytest.mark.parametrize(("index", "name"), [(0, "policy"), (3, "value model")])
def test_a_frozen_model_that_should_learn_is_refused(ppo, index, name):
    profile, four, tokenizer, prompts = ppo
    four[index].requires_grad_(False)
    with pytest.raises(ValueError, match=f"weights of the {name} are frozen.*requires_grad_"):
        ppo_trl.make_trainer(profile, *four, tokenizer, prompts)


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_two_updates_of_ppo_give_a_finite_curve_and_train_policy_and_value_alone(ppo):
    profile, four, tokenizer, prompts = ppo
    before = [weights(copy.deepcopy(model)) for model in four]
    trainer = ppo_trl.make_trainer(profile, *four, tokenizer, prompts)
    trainer.train()
    curve = ppo_trl.training_curve(trainer)
    settings = ppo_config.get_settings(profile)
    assert curve.episode.tolist() == [settings.batch_size, 2 * settings.batch_size]
    for column in ("reward", "kl", "entropy", "value_loss", "clip_fraction", "response_length", "stop_rate"):
        assert np.isfinite(curve[column]).all(), column
    assert curve.kl[0] == pytest.approx(0, abs=1e-3)  # the policy starts as the reference
    assert curve.response_length.between(1, profile.decoding.max_new_tokens).all()
    assert curve.stop_rate.between(0, 1).all()
    assert 0 < curve.entropy[0] < np.log(len(tokenizer)) + 0.5
    changed = [not torch.equal(old, weights(model)) for old, model in zip(before, four, strict=True)]
    assert changed == [True, False, False, True]
    assert list((outputs.logs_dir(profile) / "ppo_trl").rglob("events.out.tfevents.*"))
    assert "generate" not in vars(four[0])


def test_curve_has_one_row_for_an_update_whose_answers_did_not_fit_into_one_batch(ppo, monkeypatch):
    profile, four, tokenizer, prompts = ppo
    smoke = dataclasses.replace(ppo_config.get_settings(profile), micro_batch_size=4, mini_batches=1, epochs=1)
    monkeypatch.setitem(ppo_config._SETTINGS, "smoke", smoke)
    trainer = ppo_trl.make_trainer(profile, *four, tokenizer, prompts)
    trainer.train()
    curve = ppo_trl.training_curve(trainer)
    halves = [rollout["response_length"] for rollout in trainer.rollouts]
    assert smoke.batch_size == 8 and len(halves) == 4
    assert curve.episode.tolist() == [8, 16]
    assert curve.response_length.tolist() == pytest.approx([np.mean(halves[:2]), np.mean(halves[2:])])
