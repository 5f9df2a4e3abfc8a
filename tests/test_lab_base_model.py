"""The lab's base model: its tokenizer loses nothing, pretraining learns, and its checkpoint is used only if it fits."""

import dataclasses
import json
import math

from rlhf import outputs
from rlhf.lab import base_model
from rlhf.lab.corpus import documents
from rlhf.template import format_prompt

import pytest
import torch
from conftest import with_lab


def loss_of(model, tokenizer, texts) -> float:
    rows = base_model._rows(texts, tokenizer, 64)
    with torch.no_grad():
        return model(input_ids=rows, labels=rows).loss.item()


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


TEXTS = {
    "answer": "First, heat the oven until it is fully hot. Tip: warm the plates.",
    "template": format_prompt("How do I roast tofu slices during the winter?") + "An answer.",
    "unicode": "Ünïcode — «naïve» 日本語 🙂 \u200b",
    "white space": "two  spaces,\ttab,\n\nnew lines \n",
    "digits": "1234567890 $5.99",
    "new words": "antidisestablishmentarianism qzx",
}


@pytest.mark.parametrize("name", TEXTS)
def test_tokenizer_gives_back_every_text(tokenizer, name):
    ids = tokenizer(TEXTS[name])["input_ids"]
    assert tokenizer.decode(ids) == TEXTS[name]
    assert not set(ids) & {tokenizer.pad_token_id, tokenizer.eos_token_id}


def test_tokenizer_gives_back_every_byte(tokenizer):
    text = "".join(map(chr, range(256)))
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_pad_is_not_eos_and_both_are_one_token_in_the_vocabulary(tokenizer):
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert {tokenizer.pad_token_id, tokenizer.eos_token_id} <= set(range(len(tokenizer)))
    assert tokenizer("a<|endoftext|>b")["input_ids"].count(tokenizer.eos_token_id) == 1


def test_tokenizer_has_the_size_and_context_that_were_asked_for():
    tokenizer = base_model.train_tokenizer(documents(300, seed=0), vocabulary=512, context=96)
    assert (len(tokenizer), tokenizer.model_max_length) == (512, 96)


def test_words_of_the_template_are_whole_tokens(tokenizer):
    ids = tokenizer(format_prompt("x"))["input_ids"]
    assert {"Instruction", "ĠResponse", "Response"} & set(tokenizer.convert_ids_to_tokens(ids))
    assert len(ids) <= 12


def test_tokenizer_is_the_same_after_saving(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS.values():
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (again.pad_token_id, again.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)


def test_rows_hold_whole_texts_each_ended_by_eos_and_little_padding(tokenizer):
    texts = documents(200, seed=0)
    whole = [(*tokenizer(text)["input_ids"], tokenizer.eos_token_id) for text in texts]
    length = 2 * max(map(len, whole))
    rows = base_model._rows(texts, tokenizer, length)
    found = []
    for row in rows.tolist():
        tokens = row[: row.index(tokenizer.pad_token_id)] if tokenizer.pad_token_id in row else row
        assert set(row[len(tokens) :]) <= {tokenizer.pad_token_id}
        ends = [i + 1 for i, token in enumerate(tokens) if token == tokenizer.eos_token_id]
        assert ends[-1] == len(tokens)
        found += [tuple(tokens[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
    assert sorted(found) == sorted(whole)
    assert (rows != tokenizer.pad_token_id).float().mean() > 0.9


def test_no_two_rows_would_fit_into_one(tokenizer):
    texts = documents(200, seed=0)
    length = max(len(tokenizer(text)["input_ids"]) + 1 for text in texts)
    used = (base_model._rows(texts, tokenizer, length) != tokenizer.pad_token_id).sum(1).sort().values
    assert used[0] + used[1] > length


def test_text_longer_than_a_row_loses_its_end(tokenizer):
    text = max(documents(20, seed=0), key=len)
    (row,) = base_model._rows([text], tokenizer, 16).tolist()
    assert row == tokenizer(text)["input_ids"][:16]


def test_pretraining_lowers_the_loss(profile):
    trained = {}
    for steps in (1, 60):
        longer = with_lab(dataclasses.replace(profile, max_steps=None), pretraining_steps=steps, pretraining_batch=8)
        trained[steps] = base_model.pretrain(longer)
    new = documents(60, seed=99)
    before, after = (loss_of(*trained[steps], new) for steps in (1, 60))
    assert before == pytest.approx(math.log(len(trained[1][1])), abs=0.3)  # uniform over the vocabulary
    assert after < before - 1


def test_pretrained_model_has_the_shape_of_the_profile(profile, base_checkpoint):
    from transformers import AutoModelForCausalLM

    config = AutoModelForCausalLM.from_pretrained(base_checkpoint).config
    assert (config.n_layer, config.n_embd, config.n_head) == (profile.lab.layers, profile.lab.width, profile.lab.heads)
    assert (config.n_positions, config.vocab_size) == (profile.lab.context, profile.lab.vocabulary)
    assert config.pad_token_id != config.eos_token_id


def test_pretraining_is_cut_short_by_max_steps_and_says_how_long_it_was(profile):
    base_model.pretrain(dataclasses.replace(profile, max_steps=2))
    run = outputs.read_json(profile, "run.json")
    assert run["pretraining"]["steps"] == 2
    assert run["pretraining"]["seconds"] >= 0


def test_same_seed_gives_the_same_weights(profile):
    first, _ = base_model.pretrain(profile)
    torch.rand(5)  # what was drawn before must not matter
    again, _ = base_model.pretrain(profile)
    other, _ = base_model.pretrain(dataclasses.replace(profile, seed=profile.seed + 1))
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))


@pytest.fixture
def pretrained(monkeypatch):
    """Count how often a model is pretrained."""
    calls, pretrain = [], base_model.pretrain
    monkeypatch.setattr(base_model, "pretrain", lambda profile: calls.append(profile) or pretrain(profile))
    return calls


def test_checkpoint_is_used_again(profile_with_base, pretrained):
    model, tokenizer = base_model.load_or_pretrain(profile_with_base)
    assert pretrained == []
    again, _ = base_model.load_or_pretrain(profile_with_base)
    assert torch.equal(weights(model), weights(again))
    assert tokenizer.pad_token_id == model.config.pad_token_id


def test_checkpoint_serves_a_profile_with_another_number_of_pairs(profile_with_base, pretrained):
    base_model.load_or_pretrain(with_lab(profile_with_base, pairs=(10, 5, 5)))
    assert pretrained == []


@pytest.mark.parametrize(
    "change",
    [
        lambda p: dataclasses.replace(p, seed=p.seed + 1),
        lambda p: dataclasses.replace(p, max_steps=p.max_steps - 1),
        lambda p: with_lab(p, width=64),
        lambda p: with_lab(p, vocabulary=1024),
        lambda p: with_lab(p, documents=401),
    ],
    ids=["seed", "max_steps", "width", "vocabulary", "documents"],
)
def test_checkpoint_that_was_made_with_other_settings_is_replaced(profile_with_base, pretrained, change):
    changed = change(profile_with_base)
    model, tokenizer = base_model.load_or_pretrain(changed)
    assert pretrained == [changed]
    assert (model.config.n_embd, len(tokenizer)) == (changed.lab.width, changed.lab.vocabulary)
    base_model.load_or_pretrain(changed)
    assert len(pretrained) == 1


def test_checkpoint_without_its_settings_is_not_trusted(profile_with_base, pretrained):
    path = outputs.checkpoint_path(profile_with_base, "base") / "lab.json"
    assert json.loads(path.read_text())["seed"] == profile_with_base.seed
    path.unlink()
    base_model.load_or_pretrain(profile_with_base)
    assert len(pretrained) == 1 and path.exists()


def test_every_step_of_pretraining_has_a_learning_rate_above_zero(profile, monkeypatch):
    rates = []
    step = torch.optim.AdamW.step

    def recorded(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    base_model.pretrain(dataclasses.replace(with_lab(profile, pretraining_steps=40), max_steps=None))
    highest = profile.lab.pretraining_learning_rate
    assert len(rates) == 40 and rates[0] == pytest.approx(highest / 25) and 0 < rates[-1] < highest / 100
    assert max(rates) == pytest.approx(highest, rel=0.1)


def test_pretraining_leaves_the_global_generators_as_they_were(profile):
    before = torch.get_rng_state()
    base_model.pretrain(profile)
    assert torch.equal(torch.get_rng_state(), before)
