"""The lab's base model: its tokenizer loses nothing, the shipped one is loaded as it is, and only where it fits."""

import csv
import dataclasses
import math
import random
import re

from rlhf import models, outputs, pretraining
from rlhf.lab import base_model
from rlhf.lab.corpus import documents
from rlhf.profiles import load_profile
from rlhf.template import format_prompt

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import with_lab
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer


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
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS.values():
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (again.pad_token_id, again.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)


@pytest.fixture
def shipped(profile, tmp_path, monkeypatch):
    """A profile whose base is shipped, and the model in the shipped folder: that of the smoke profile."""
    tokenizer = base_model.train_tokenizer(documents(300, seed=0), profile.lab.vocabulary, profile.lab.context)
    model = base_model.new_model(profile.lab, tokenizer, seed=5)
    losses = pd.DataFrame({"step": [4], "tokens": [40], "loss": [7.0], "validation_loss": [7.0], "seconds": [1.0]})
    monkeypatch.setattr(base_model, "SHIPPED", tmp_path / "shipped")
    pretraining.ship(profile, model, tokenizer, losses, base_model.SHIPPED)
    return with_lab(profile, pretrained=True), model


def test_shipped_base_is_given_in_float32_with_its_tokenizer(shipped):
    profile, shipped_model = shipped
    model, tokenizer = base_model.prepare(profile)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(weights(model), weights(shipped_model).half().float())
    assert not model.training and model.config._attn_implementation == base_model.CPU_ATTENTION
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(base_model.SHIPPED).get_vocab()
    assert (tokenizer.pad_token_id, tokenizer.model_max_length) == (model.config.pad_token_id, profile.lab.context)


def test_base_of_another_language_is_said_to_be_one(shipped, monkeypatch, recwarn):
    base_model.prepare(shipped[0])
    assert not recwarn
    monkeypatch.setattr(base_model, "documents", lambda count, seed: documents(count, seed + 1))
    with pytest.warns(UserWarning, match="has changed since its base was pretrained; run make pretrain"):
        base_model.prepare(shipped[0])


@pytest.mark.parametrize("pretrained", [True, False])
def test_prepared_base_is_saved_as_the_checkpoint_of_the_profile(shipped, pretrained):
    profile = with_lab(shipped[0], pretrained=pretrained)
    model, tokenizer = base_model.prepare(profile)
    path = outputs.checkpoint_path(profile, "base")
    saved = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    assert saved.dtype == torch.float32 and torch.equal(weights(saved), weights(model))
    assert torch.equal(weights(models.load_base(profile)), weights(model))
    assert AutoTokenizer.from_pretrained(path)(TEXTS["answer"]) == tokenizer(TEXTS["answer"])


def test_checkpoint_of_another_base_is_replaced(shipped):
    profile, _ = shipped
    random_one, _ = base_model.prepare(with_lab(profile, pretrained=False))
    shipped_one, _ = base_model.prepare(profile)
    assert not torch.equal(weights(random_one), weights(shipped_one))
    assert torch.equal(weights(models.load_base(profile)), weights(shipped_one))


def test_shipped_base_does_not_depend_on_the_seed(shipped):
    profile, _ = shipped
    first, _ = base_model.prepare(profile)
    other, _ = base_model.prepare(dataclasses.replace(profile, seed=profile.seed + 1))
    assert torch.equal(weights(first), weights(other))


@pytest.mark.parametrize("setting", ["layers", "width", "heads", "vocabulary", "context"])
def test_shipped_base_of_another_size_than_the_profile_asks_for_is_refused(shipped, setting):
    profile, _ = shipped
    size = getattr(profile.lab, setting)
    with pytest.raises(ValueError, match=rf"{size}.*the smoke profile asks for others.*make pretrain"):
        base_model.prepare(with_lab(profile, **{setting: 2 * size}))
    assert not outputs.checkpoint_path(profile, "base").exists()


def test_shipped_base_serves_a_profile_that_pretrains_or_samples_in_another_way(shipped):
    profile, model = shipped
    other = with_lab(profile, pairs=(10, 5, 5), documents=7, pretraining={"steps": 1, "learning_rate": 1.0})
    assert torch.equal(weights(base_model.prepare(other)[0]), weights(model).half().float())


def test_smoke_base_has_random_weights_of_the_size_of_the_profile(profile, base_checkpoint):
    model, tokenizer = base_model.prepare(profile)
    config, lab = model.config, profile.lab
    assert (config.n_layer, config.n_embd, config.n_head) == (lab.layers, lab.width, lab.heads)
    assert (config.n_positions, config.vocab_size) == (lab.context, lab.vocabulary)
    assert config.pad_token_id == tokenizer.pad_token_id != config.eos_token_id == tokenizer.eos_token_id
    assert torch.equal(weights(model), weights(AutoModelForCausalLM.from_pretrained(base_checkpoint)))
    rows = pretraining._rows(documents(60, seed=99), tokenizer, 64)
    with torch.no_grad():
        loss = pretraining._loss(model, tokenizer, rows).item()
    assert loss == pytest.approx(math.log(len(tokenizer)), abs=0.3)  # uniform over the vocabulary


def test_smoke_base_is_the_same_for_the_same_seed_whatever_was_drawn_before(profile):
    first, _ = base_model.prepare(profile)
    torch.rand(5)
    again, _ = base_model.prepare(profile)
    other, _ = base_model.prepare(dataclasses.replace(profile, seed=profile.seed + 1))
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))


def test_smoke_tokenizer_learns_from_no_more_documents_than_it_needs(profile, monkeypatch):
    asked = []
    monkeypatch.setattr(base_model, "documents", lambda count, seed: asked.append((count, seed)) or documents(300, 0))
    base_model.prepare(profile)
    base_model.prepare(dataclasses.replace(with_lab(profile, documents=10**6), seed=3))
    assert asked == [(profile.lab.documents, profile.seed), (base_model.TOKENIZER_DOCUMENTS, 3)]


@pytest.mark.parametrize("pretrained", [True, False])
def test_preparing_leaves_the_global_generators_as_they_were(shipped, pretrained):
    before = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    base_model.prepare(with_lab(shipped[0], pretrained=pretrained))
    assert (random.getstate(), str(np.random.get_state())) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])


# From here on the folder that is committed.
LAB = load_profile("lab")


def test_the_real_base_has_the_size_that_the_lab_profile_asks_for(profile):
    model, tokenizer = base_model.prepare(dataclasses.replace(profile, lab=LAB.lab))  # it refuses any other
    assert len(tokenizer) == LAB.lab.vocabulary and tokenizer.model_max_length == LAB.lab.context
    assert 3e6 < model.num_parameters() < 8e6
    assert torch.isfinite(weights(model)).all()


def test_the_real_base_was_pretrained_on_the_text_that_the_code_writes():
    recorded = (base_model.SHIPPED / base_model.LANGUAGE_FILE).read_text(encoding="utf-8").strip()
    assert recorded == base_model.language(), "pretrain the base anew (make pretrain), or take the language back"


def test_the_real_base_is_16_bit_and_small_enough_for_a_repository():
    path = base_model.SHIPPED / "model.safetensors"
    assert path.stat().st_size <= 16 * 2**20
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert {p.name for p in base_model.SHIPPED.iterdir()} >= {"README.md", "loss.csv", "config.json", "tokenizer.json"}
    assert not [p.name for p in base_model.SHIPPED.iterdir() if p.suffix in (".bin", ".pt", ".pkl")]


def test_the_real_tokenizer_has_a_pad_token_of_its_own_and_loses_nothing():
    tokenizer = AutoTokenizer.from_pretrained(base_model.SHIPPED)
    config = AutoModelForCausalLM.from_pretrained(base_model.SHIPPED).config
    assert tokenizer.pad_token_id == config.pad_token_id != tokenizer.eos_token_id == config.eos_token_id
    for text in TEXTS.values():
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_real_card_says_how_the_base_was_made_and_what_its_loss_is():
    card = (base_model.SHIPPED / "README.md").read_text(encoding="utf-8")
    rows = list(csv.DictReader((base_model.SHIPPED / "loss.csv").open(encoding="utf-8")))
    said, perplexity = re.search(
        r"loss on documents that it never saw is ([\d.]+) .*perplexity of ([\d.]+);", card
    ).groups()
    loss, steps, tokens = (float(rows[-1][name]) for name in ("validation_loss", "step", "tokens"))
    assert float(said) == pytest.approx(loss, abs=0.0006)
    assert float(perplexity) == pytest.approx(math.exp(loss), abs=0.006)  # it has two digits
    settings = LAB.lab.pretraining
    assert (steps, tokens) == (settings.steps, settings.steps * settings.batch_size * settings.tokens)
    assert f"{int(steps):,} steps" in card and f"{int(tokens):,} tokens" in card
    assert f"{LAB.lab.documents:,} documents" in card and f"with seed {LAB.seed}:" in card
    for name, value in (vars(LAB.lab) | vars(settings)).items():
        assert f"| {name} | {value} |" in card or name in ("pairs", "pretrained", "pretraining")


def test_the_real_base_foretells_documents_that_it_never_saw_as_well_as_its_card_says():
    model, tokenizer = (kind.from_pretrained(base_model.SHIPPED) for kind in (AutoModelForCausalLM, AutoTokenizer))
    rows = pretraining._rows(documents(60, LAB.seed + 1), tokenizer, LAB.lab.pretraining.tokens)
    measured = pretraining._validation_loss(model.float().eval(), tokenizer, rows, batch_size=2)
    said = float(list(csv.DictReader((base_model.SHIPPED / "loss.csv").open(encoding="utf-8")))[-1]["validation_loss"])
    assert measured == pytest.approx(said, rel=0.1)  # of 60 documents instead of all
