"""Supervised fine-tuning: what is learned from which tokens, and trainers that learn it."""

import dataclasses
import math

from rlhf import models, outputs, runtime, sft
from rlhf.data import load_preferences
from rlhf.lab import gold_score
from rlhf.lab.corpus import RATER_TEMPERATURE
from rlhf.lab.world import parse_question
from rlhf.reward.scoring import encode
from rlhf.template import format_prompt

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import recorded_rates, stage_module
from datasets import Dataset

prepare_data = stage_module("01_supervised_finetuning/prepare_data.py")
get_sft_datasets = prepare_data["get_sft_datasets"]

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
    monkeypatch.setattr(runtime, "bf16_is_native", lambda *_: False)
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")  # the trainers set it; restored after each test


def rows_of(tokenized):
    return zip(tokenized["input_ids"], tokenized["labels"], strict=True)


def test_sft_examples_are_the_chosen_answers_in_the_template(profile_with_base):
    splits = get_sft_datasets(profile_with_base)
    pairs = load_preferences(profile_with_base)
    assert list(splits) == ["train", "validation", "test"]
    for name, rows in splits.items():
        assert rows.column_names == ["prompt", "completion"]
        assert rows["prompt"] == [format_prompt(prompt) for prompt in pairs[name]["prompt"]]
        assert rows["completion"] == pairs[name]["chosen"]


def test_prompt_with_several_pairs_gives_one_example_per_distinct_answer(profile_with_base, monkeypatch):
    rows = Dataset.from_dict({"prompt": ["Why?"] * 3, "chosen": ["A.", "A.", "B."], "rejected": ["1", "2", "3"]})
    monkeypatch.setitem(get_sft_datasets.__globals__, "load_preferences", lambda _: {"train": rows})
    examples = get_sft_datasets(profile_with_base)["train"]
    assert examples["completion"] == ["A.", "B."]


def test_example_that_is_too_long_is_left_out_with_a_printed_line(profile_with_base, monkeypatch, capsys):
    rows = Dataset.from_dict({"prompt": ["Why?", "How?"], "chosen": ["A.", "word " * 300], "rejected": ["1", "2"]})
    monkeypatch.setitem(get_sft_datasets.__globals__, "load_preferences", lambda _: {"train": rows})
    examples = get_sft_datasets(profile_with_base)["train"]
    assert examples["completion"] == ["A."]
    limit = profile_with_base.sft.max_length
    expected = f"train examples: 1 of 2 rows are longer than {limit} tokens and are left out\n"
    assert capsys.readouterr().out == expected


def test_loss_sees_the_completion_with_its_eos_and_nothing_of_the_prompt(tokenizer):
    tokenized = sft.tokenize(EXAMPLES, tokenizer)
    for example, (ids, labels) in zip(EXAMPLES, rows_of(tokenized), strict=True):
        prompt = tokenizer(example["prompt"])["input_ids"]
        assert ids[: len(prompt)] == prompt
        assert labels[: len(prompt)] == [IGNORED] * len(prompt)
        assert labels[len(prompt) :] == ids[len(prompt) :]
        assert ids[-1] == labels[-1] == tokenizer.eos_token_id
        assert ids.count(tokenizer.eos_token_id) == 1


def test_labels_decode_to_the_completion_and_eos(tokenizer):
    for example, (_, labels) in zip(EXAMPLES, rows_of(sft.tokenize(EXAMPLES, tokenizer)), strict=True):
        learned = [label for label in labels if label != IGNORED]
        assert tokenizer.decode(learned) == example["completion"] + tokenizer.eos_token


def test_tokens_of_sft_are_those_of_the_reward_model(tokenizer):
    ids = sft.tokenize(EXAMPLES, tokenizer)["input_ids"]
    assert ids == encode(tokenizer, ["How do I roast tofu slices?", "Why?"], EXAMPLES["completion"], [True] * 2)


def test_without_ending_there_is_no_eos(tokenizer):
    with_eos = sft.tokenize(EXAMPLES, tokenizer, "eos")
    without = sft.tokenize(EXAMPLES, tokenizer, "none")
    for column in ("input_ids", "labels"):
        assert without[column] == [row[:-1] for row in with_eos[column]]


def test_with_pad_as_eos_the_model_reads_eos_and_does_not_learn_it(tokenizer):
    with_eos = sft.tokenize(EXAMPLES, tokenizer, "eos")
    masked = sft.tokenize(EXAMPLES, tokenizer, "pad_is_eos")
    assert masked["input_ids"] == with_eos["input_ids"]
    assert masked["labels"] == [[*row[:-1], IGNORED] for row in with_eos["labels"]]


def test_unknown_ending_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"'stop'.*eos, none, pad_is_eos"):
        sft.tokenize(EXAMPLES, tokenizer, "stop")


@pytest.fixture
def trained(profile_with_base):
    """A profile that trains 24 steps, its tokenizer, and tokenised train and validation examples."""
    profile = dataclasses.replace(profile_with_base, max_steps=24)
    tokenizer = models.load_tokenizer(profile)
    splits = get_sft_datasets(profile)
    return (profile, tokenizer, *(sft.tokenize(splits[name], tokenizer) for name in ("train", "validation")))


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
def test_validation_loss_is_that_of_the_learned_tokens_alone(trained, ending):
    profile, tokenizer, train, _ = trained
    part = get_sft_datasets(profile)["validation"].select(range(profile.sft.batch_size))
    examples = sft.tokenize(part, tokenizer, ending)
    model = models.load_base(profile)
    trainer = sft.make_trainer(profile, "check", model, tokenizer, train, examples, learning_rate=1e-3)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(loss_by_hand(model.eval(), examples), rel=1e-3)


def test_full_finetuning_lowers_both_losses_and_writes_tensorboard_files(trained):
    profile, tokenizer, train, validation = trained
    model = models.load_base(profile)
    before = loss_by_hand(model.eval(), validation)
    trainer = sft.make_trainer(profile, "sft_full", model, tokenizer, train, validation, learning_rate=3e-3, epochs=2)
    trainer.train()
    assert loss_by_hand(trainer.model.eval(), validation) < before - 0.3
    curve = sft.loss_curve(trainer, "sft_full")
    assert list(curve.columns) == ["run", "split", "step", "loss"]
    train_loss = curve.query("split == 'train'").loss
    assert len(train_loss) >= 10 and train_loss.iloc[-1] < train_loss.iloc[0] - 0.3
    validation_rows = curve.query("split == 'validation'")
    assert len(validation_rows) == profile.sft.evaluations and validation_rows.step.iloc[-1] == 24
    assert list((outputs.logs_dir(profile) / "sft_full").rglob("events.out.tfevents.*"))


def test_a_training_begins_by_giving_back_the_memory_of_those_before(trained, monkeypatch):
    profile, tokenizer, train, _ = trained
    profile, calls = dataclasses.replace(profile, max_steps=1), []
    trainer = sft.make_trainer(profile, "memory", models.load_base(profile), tokenizer, train, None, learning_rate=1e-3)
    monkeypatch.setattr(runtime, "free_memory", lambda: calls.append(trainer.state.global_step))
    trainer.train()
    assert calls == [0]


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_adapter_training_lowers_the_loss_and_leaves_the_base_as_it_was(trained, method):
    profile, tokenizer, train, validation = trained
    model, adapter = sft.start_model(profile, method)
    frozen = {n: p.detach().clone() for n, p in model.named_parameters()}
    before = loss_by_hand(model, validation)
    trainer = sft.make_trainer(
        profile, method, model, tokenizer, train, validation, learning_rate=1e-2, epochs=2, adapter=adapter
    )
    trainable = {name: p.dtype for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert trainable and all("lora_" in name for name in trainable)
    assert set(trainable.values()) == {torch.float32}  # small steps would be rounded away in bfloat16
    trainer.train()
    losses = sft.loss_curve(trainer, method).query("split == 'validation'").loss
    assert losses.iloc[-1] < before - 0.01
    now = {
        n.removeprefix("base_model.model.").replace(".base_layer", ""): p for n, p in trainer.model.named_parameters()
    }
    assert all(torch.equal(now[name].detach(), value) for name, value in frozen.items())


def adapter_parameters(width, r, layers=2):
    shapes = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    return layers * sum(r * (inside + outside) for inside, outside in shapes)


def test_cost_of_each_method_is_counted_as_by_hand(trained):
    profile, tokenizer, train, _ = trained
    costs = {m: sft.measure_cost(profile, m, tokenizer, train, steps=2) for m in sft.METHODS}
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
        sft.start_model(profile_with_base, "half")


def test_search_tries_each_rate_from_the_same_start_and_the_lowest_loss_wins(trained):
    profile, tokenizer, train, validation = trained
    settings = dataclasses.replace(profile.sft, full_learning_rates=(1e-12, 3e-3), search_share=0.5)
    profile = dataclasses.replace(profile, sft=settings)
    validation = validation.select(range(8))
    searched = sft.search_learning_rate(profile, "full", tokenizer, train, validation)
    assert list(searched.columns) == ["method", "learning_rate", "validation_loss"]
    assert searched.method.tolist() == ["full", "full"] and searched.learning_rate.tolist() == [1e-12, 3e-3]
    untrained = loss_by_hand(models.load_base(profile).eval(), validation)
    assert searched.validation_loss[0] == pytest.approx(untrained, rel=1e-3)
    assert searched.validation_loss[1] < searched.validation_loss[0]
    assert sft.best_learning_rate(searched) == 3e-3


def test_best_learning_rate_is_that_of_the_lowest_loss_and_never_of_a_run_that_diverged():
    searched = pd.DataFrame({"learning_rate": [1e-4, 1e-3, 1e-2], "validation_loss": [2.0, 1.5, float("nan")]})
    assert sft.best_learning_rate(searched) == 1e-3


def test_share_of_the_examples_is_the_same_for_the_same_seed():
    examples = Dataset.from_dict({"x": list(range(100))})
    part = sft.share_of(examples, 0.25, seed=1)["x"]
    assert len(set(part)) == 25 and part == sft.share_of(examples, 0.25, seed=1)["x"]
    assert part != sft.share_of(examples, 0.25, seed=2)["x"]
    assert len(sft.share_of(examples, 0.01, seed=1)) == 8
    assert len(sft.share_of(examples.select(range(3)), 0.01, seed=1)) == 3


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_two_runs_of_one_process_start_from_the_same_adapter_and_see_the_same_batches(trained, method):
    profile, tokenizer, train, validation = trained
    starts, losses = [], []
    for draws in (0, 3):
        torch.rand(draws)  # what ran before must not matter
        np.random.rand(draws)
        model, adapter = sft.start_model(profile, method)
        trainer = sft.make_trainer(
            profile, "twice", model, tokenizer, train, validation, learning_rate=1e-3, adapter=adapter
        )
        starts.append({n: p.detach().clone() for n, p in trainer.model.named_parameters() if "lora_A" in n})
        trainer.train()
        losses.append(sft.loss_curve(trainer, "twice").loss.tolist())
    assert starts[0] and all(torch.equal(starts[0][name], p) for name, p in starts[1].items())
    assert losses[0] == losses[1]


def test_training_leaves_the_global_generators_as_they_were(trained):
    profile, tokenizer, train, validation = trained
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    sft.search_learning_rate(profile, "qlora", tokenizer, train, validation)
    assert torch.equal(torch.get_rng_state(), before[0]) and np.random.get_state()[1].tolist() == before[1]


def test_every_step_of_fine_tuning_has_a_learning_rate_above_zero(trained):
    """transformers' schedules give the first step of a warm-up the rate 0."""
    profile, tokenizer, train, _ = trained
    trainer = sft.make_trainer(
        profile, "rates", models.load_base(profile), tokenizer, train, None, learning_rate=1e-3, epochs=2
    )
    warmup = trainer.args.warmup_steps
    rates = recorded_rates(trainer)
    assert warmup == 4 and len(rates) == 24
    assert rates[:5] == pytest.approx([1e-3 * share for share in (0.2, 0.4, 0.6, 0.8, 1.0)])
    assert max(rates) == rates[4] and 0 < rates[-1] < 1e-5


def test_lengths_are_counted_in_bins_of_tokens(profile_with_base):
    tokenizer = models.load_tokenizer(profile_with_base)
    rows = Dataset.from_dict({"prompt": ["Why?"], "chosen": ["a " * 30], "rejected": ["b"]})
    frame = prepare_data["length_histogram"](profile_with_base, tokenizer, rows)
    for column in ("prompt", "chosen", "rejected"):
        length = len(tokenizer(rows[0][column])["input_ids"])
        shown = frame[(frame.text == column) & (frame["count"] > 0)]
        assert shown["count"].tolist() == [1] and shown.tokens.tolist() == [length // 4 * 4]


def test_the_pair_to_look_at_is_one_that_the_rater_was_right_but_unsure_about(profile):
    row = prepare_data["unsure_pair"](profile)
    pairs = load_preferences(profile)["train"]
    place = list(pairs["prompt"]).index(row.prompt)
    assert (row.chosen, row.rejected) == (pairs[place]["chosen"], pairs[place]["rejected"])
    assert parse_question(row.prompt).condition
    gap = gold_score(row.prompt, row.chosen) - gold_score(row.prompt, row.rejected)
    assert 0 < gap < math.log(0.95 / 0.05) * RATER_TEMPERATURE
