"""Published results as they were published, and published checkpoints that are loaded and evaluated here."""

import dataclasses
import shutil

from rlhf import generation, registry
from rlhf.evaluation import published as publications

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification


def test_published_numbers_are_those_of_the_published_models():
    table = publications.PUBLISHED
    assert set(table.model) == set(registry.POLICIES) - {"ppo_scratch"} and set(table.metric) == {
        "rouge1",
        "rouge2",
        "rougeL",
        "reward",
    }
    assert np.isfinite(table.value).all() and not table.duplicated(["model", "metric"]).any()
    best = table.query("metric == 'rouge1'").set_index("model").value
    assert best.idxmax() == "sft_full" and best.idxmin() == "base"


@pytest.fixture
def published(tmp_path, policy, tokenizer):
    """A folder laid out as a published repository, its base, and its reward adapter; tiny, and padded with EOS."""
    tokenizer.pad_token = tokenizer.eos_token
    for name in ("base", "repository/sft_full_final", "repository/ppo_aligned_final"):
        policy.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    trunk = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    adapter = get_peft_model(trunk, LoraConfig(r=4, target_modules=["c_attn"], task_type="SEQ_CLS"))
    for parameter in adapter.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    adapter.save_pretrained(tmp_path / "repository" / "reward_model_final")
    return tmp_path / "repository", tmp_path / "base", adapter.eval()


def test_published_policy_answers_although_it_pads_with_eos(published):
    folder, _, _ = published
    model, tokenizer = publications.load_published_policy(folder, "sft_full_final")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    alone = generation.generate_texts(model, tokenizer, ["Why?"], max_new_tokens=5, batch_size=1)
    both = generation.generate_texts(
        model, tokenizer, ["Why?", "How do I grill rose bushes?"], max_new_tokens=5, batch_size=2
    )
    assert both[0] == alone[0]


def test_published_reward_is_that_of_the_adapter_with_its_head_on_its_own_template(published, tokenizer):
    folder, base, adapter = published
    reward = publications.load_published_reward(folder, str(base))
    given = reward(["Why?", "How do I grill?"], ["It is hot.", "Heat it. Then wait."], [True, False])
    texts = ["\n\nHuman: Why?\n\nAssistant: It is hot.", "\n\nHuman: How do I grill?\n\nAssistant: Heat it. Then wait."]
    for value, text in zip(given, texts, strict=True):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        hidden = adapter.base_model.model.transformer(ids).last_hidden_state[0, -1]
        assert value == pytest.approx(adapter.base_model.model.score(hidden).item(), abs=1e-5)
    assert given[0] != given[1]


@pytest.mark.parametrize("stage", ["sft_full_final", "reward_model_final"])
def test_stage_that_a_published_folder_lacks_is_named(published, stage):
    folder, base, _ = published
    shutil.rmtree(folder / stage)
    with pytest.raises(FileNotFoundError, match=rf"has no {stage} \(found: .*ppo_aligned_final"):
        if stage == "reward_model_final":
            publications.load_published_reward(folder, str(base))
        else:
            publications.load_published_policy(folder, stage)


def test_published_checkpoints_are_evaluated_by_rouge_and_their_own_reward(published, profile):
    folder, base, _ = published
    profile = dataclasses.replace(profile, model=str(base))
    table = publications.evaluate_published(profile, folder, ["Why?", "How?"], ["Because.", "By hand."])
    assert table.model.unique().tolist() == ["published sft_full_final", "published ppo_aligned_final"]
    assert table.metric.unique().tolist() == ["rouge1", "rouge2", "rougeL", "reward"]
    assert table["mean"].notna().all() and (table.n == 2).all()


def test_braces_in_a_prompt_or_an_answer_are_text(published):
    folder, base, _ = published
    reward = publications.load_published_reward(folder, str(base))
    plain, braced = reward(["Why {response}?"] * 2, ["It.", "{prompt} {0} {response.__class__}"], [True, True])
    assert np.isfinite(plain) and plain != braced


def test_loading_published_models_leaves_the_global_generator_as_it_was(published):
    folder, base, _ = published
    before = torch.get_rng_state()
    publications.load_published_reward(folder, str(base))
    publications.load_published_policy(folder, "sft_full_final")
    assert torch.equal(torch.get_rng_state(), before)
