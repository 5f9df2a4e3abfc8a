"""A reward model on an encoder: texts go in and one number comes out, alone as in a batch; it learns from pairs."""

import dataclasses
import json
import math

from rlhf import outputs
from rlhf.profiles import load_profile
from rlhf.reward import encoder

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

PROMPTS = ["Name a colour.", "Say it.", "What is a cup that is not worn?\n\nIn one word, please."]
ANSWERS = ["Blue", "It is said, and said again, and then once more.", ""]


@pytest.fixture
def own(profile):
    return dataclasses.replace(profile, encoder="own")


def test_own_encoder_is_the_same_for_a_seed_and_leaves_the_generator_alone(own):
    before = torch.get_rng_state()
    first, second = (encoder.new(own)[0].state_dict() for _ in range(2))
    other = encoder.new(dataclasses.replace(own, seed=1))[0].state_dict()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_prompt_and_answer_stand_in_the_two_places_of_the_encoder(own):
    _, tokenizer = encoder.new(own)
    (inputs,) = encoder.read(tokenizer, ["ab"], ["c"])
    assert tokenizer.convert_ids_to_tokens(inputs["input_ids"]) == ["[CLS]", "a", "##b", "[SEP]", "c", "[SEP]"]
    assert inputs["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    as_text = encoder.read(tokenizer, ["ab"], ["[SEP]"])[0]["input_ids"]
    assert tokenizer.convert_ids_to_tokens(as_text)[4:-1] == ["[", "s", "##e", "##p", "]"]


def test_score_is_the_same_alone_and_in_a_padded_batch(own):
    model, tokenizer = encoder.new(own)
    together = encoder.score(model, tokenizer, PROMPTS, ANSWERS, batch_size=2)
    alone = [encoder.score(model, tokenizer, [p], [a]).item() for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    with torch.no_grad():
        logit = model(**tokenizer(PROMPTS[1], ANSWERS[1], return_tensors="pt")).logits
    assert together.shape == (3,) and together[1] == pytest.approx(logit.item(), abs=1e-5)
    assert len(set(together.round(6))) == 3


def test_answer_is_read_up_to_the_last_place_and_a_prompt_that_takes_all_is_named(own):
    model, tokenizer = encoder.new(own)
    room = tokenizer.model_max_length
    assert room == own.reward.max_length < 512
    assert len(encoder.read(tokenizer, ["ab"], ["=" * 1000])[0]["input_ids"]) == room
    same = encoder.score(model, tokenizer, ["ab"] * 2, ["=" * 1000, "=" * 2000])
    assert same[0] == pytest.approx(same[1], abs=1e-6)
    with pytest.raises(ValueError, match=rf"prompt '===.* takes 1000 of the encoder's {room - 3} tokens; leave it out"):
        encoder.score(model, tokenizer, ["=" * 1000], ["y"])


def test_embedding_is_the_mean_over_real_tokens_of_length_one(own):
    model, tokenizer = encoder.new(own)
    rows = encoder.embed(model, tokenizer, ["a", "what is this", "a"], batch_size=2)
    with torch.no_grad():
        states = model.base_model(**tokenizer("what is this", return_tensors="pt")).last_hidden_state[0]
    mean = states.mean(dim=0) / states.mean(dim=0).norm()
    np.testing.assert_allclose(rows[1], mean, atol=1e-5)
    assert rows[0] @ rows[2] == pytest.approx(1) and np.linalg.norm(rows, axis=1) == pytest.approx(1)


def pairs_about(words):
    """The better answer repeats the word of the prompt: only who reads both can tell."""
    rows = [(w, w, other) for w in words for other in words if w != other]
    return Dataset.from_list([{"prompt": p, "chosen": c, "rejected": r} for p, c, r in rows])


def test_loss_is_that_of_bradley_terry_with_its_centring(own):
    model, tokenizer = encoder.new(own)
    pairs = pairs_about(["red", "blue"])
    trainer = encoder.make_trainer(own, "test", model.eval(), tokenizer, pairs, epochs=1)
    chosen, rejected = (encoder.score(model, tokenizer, pairs["prompt"], pairs[c]) for c in ("chosen", "rejected"))
    expected = np.log1p(np.exp(rejected - chosen)) + own.reward.center_rewards_coefficient * (chosen + rejected) ** 2
    with torch.no_grad():
        loss = trainer.compute_loss(model, trainer.data_collator([dict(row) for row in pairs]))
    assert loss.item() == pytest.approx(expected.mean(), abs=1e-5)


def test_training_learns_and_what_is_saved_scores_the_same(own):
    own = dataclasses.replace(own, max_steps=None)
    own = dataclasses.replace(own, reward=dataclasses.replace(own.reward, learning_rate=5e-3, warmup_steps=0))
    model, tokenizer = encoder.new(own)
    pairs = Dataset.from_list([{"prompt": "p", "chosen": c, "rejected": r} for c, r in [("a", "b"), ("ab", "bb")] * 8])
    encoder.make_trainer(own, "test", model, tokenizer, pairs, epochs=40).train()
    good, bad = (encoder.score(model, tokenizer, ["p"] * 2, answers) for answers in (["a", "ab"], ["b", "bb"]))
    assert (good > bad + 0.5).all()
    outputs.save_checkpoint(own, "reward_model_final", model, tokenizer)
    loaded, its_tokenizer = encoder.load(own)  # what was trained goes on to score in the precision of its training
    np.testing.assert_allclose(encoder.score(loaded, its_tokenizer, ["p"] * 2, ["a", "ab"]), good, rtol=0.01)
    assert its_tokenizer.model_max_length == tokenizer.model_max_length


def test_score_that_is_none_is_refused_with_its_prompt(own):
    model, tokenizer = encoder.new(own)
    with torch.no_grad():
        model.classifier.bias.fill_(math.nan)
    with pytest.raises(ValueError, match=r"Name a colour"):
        encoder.score(model, tokenizer, PROMPTS[:1], ANSWERS[:1])


def test_folder_is_taken_and_gets_a_head_of_one_logit(own, tmp_path):
    model, tokenizer = encoder.new(own)
    model.config.num_labels = 3
    BertForSequenceClassification(model.config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path).base_model
    base.save_pretrained(tmp_path)
    (tmp_path / "data_config.json").write_text('[{"name": "pairs"}]')  # as encoders of sentence-transformers have it
    assert len(config["id2label"]) == 3
    found, _ = encoder.new(dataclasses.replace(own, encoder=str(tmp_path)))
    assert found.config.num_labels == 1 and found.classifier.out_features == 1
    assert torch.equal(found.base_model.embeddings.word_embeddings.weight, base.embeddings.word_embeddings.weight)


def test_folder_that_is_no_encoder_or_has_no_safetensors_is_refused_by_name(own, tmp_path, policy, tokenizer):
    policy.save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ValueError, match=r"encoder 'gpt2' has no token between two texts.*RLHF_ENCODER"):
        encoder.new(dataclasses.replace(own, encoder=str(tmp_path / "gpt2")))
    (tmp_path / "gpt2" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"encoder 'gpt2' has no \.safetensors file"):
        encoder.new(dataclasses.replace(own, encoder=str(tmp_path / "gpt2")))


def test_minilm_without_its_package_says_how_it_comes(own, monkeypatch):
    def missing(name):
        raise encoder.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(encoder.metadata, "distribution", missing)
    match = r"'minilm' can't be loaded.*requirements-minilm\.txt.*RLHF_ENCODER=minilm"
    with pytest.raises(ConnectionError, match=match):
        encoder.new(dataclasses.replace(own, encoder="minilm"))


def test_encoder_is_set_by_its_variable_where_a_recipe_has_one(monkeypatch, tmp_path):
    monkeypatch.setenv("RLHF_ENCODER", str(tmp_path))
    assert load_profile("alpaca").encoder == load_profile("alpaca_smoke").encoder == str(tmp_path)
    assert load_profile("sentiment").encoder == load_profile("lab").encoder == ""
