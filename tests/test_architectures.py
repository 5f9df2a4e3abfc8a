"""Every stage on tiny random models of many architectures, from local folders as a user would bring them."""

import dataclasses
import json
import random

from rlhf import generation, models, outputs, sft
from rlhf.data import load_preferences
from rlhf.hub.publish import assemble
from rlhf.lab import base_model
from rlhf.ppo import trl
from rlhf.ppo.settings import Settings
from rlhf.ppo.trainer import PPOTrainer
from rlhf.profiles import load_profile
from rlhf.reward.pairs import load_pairs
from rlhf.reward.scoring import score
from rlhf.reward.training import make_trainer
from rlhf.template import format_prompt

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from conftest import PLANTED, TEXTS, run_script, told
from datasets import Dataset

VOCABULARY = 640  # more than the tokenizer has: some models fill their embedding up to a round number
COMMON = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = COMMON | {"intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 8192}
WINDOW = 16  # shorter than the prompts
ARCHITECTURES = {
    "gpt2": ("GPT2", {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "gpt_neo": (
        "GPTNeo",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": WINDOW,
            "max_position_embeddings": 256,
        },
    ),
    "llama": ("Llama", LLAMA),
    "llama, tied": ("Llama", LLAMA | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", LLAMA | {"head_dim": 8}),
    "mistral": ("Mistral", LLAMA | {"sliding_window": WINDOW}),
    "opt": ("OPT", COMMON | {"ffn_dim": 64, "word_embed_proj_dim": 16, "max_position_embeddings": 256}),
    "gpt_neox": ("GPTNeoX", COMMON | {"intermediate_size": 64}),
    "phi": ("Phi", COMMON | {"intermediate_size": 64}),  # a head with a bias
    "bloom": ("Bloom", {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4}),  # no last position
    "gemma2": ("Gemma2", LLAMA | {"head_dim": 8, "sliding_window": WINDOW, "final_logit_softcapping": 2.0}),
    "granite": ("Granite", LLAMA | {"logits_scaling": 4.0}),
    "cohere": ("Cohere", LLAMA | {"logit_scale": 0.25}),
}
PROMPTS = ["How do I roast tofu slices in a small apartment?", "Why?", "Which tools help with freezing pork chops?"]


def save_model(folder, name: str) -> None:
    """A folder as others publish them: random weights wide enough to matter, and a tokenizer without pad token."""
    kind, settings = ARCHITECTURES[name]
    tokenizer = base_model.train_tokenizer(TEXTS * 2, vocabulary=600, context=256)
    tokenizer.pad_token = tokenizer.eos_token
    end = {f"{which}_token_id": tokenizer.eos_token_id for which in ("bos", "eos", "pad")}
    config = getattr(transformers, f"{kind}Config")(**settings, **end)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.generation_config.no_repeat_ngram_size = 2
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_pairs(path) -> None:
    rng, words = random.Random(0), " ".join(TEXTS).split()
    rows = [
        {
            "prompt": f"{rng.choice(words)} {rng.choice(words)} number {i}?",
            "chosen": " ".join(rng.choices(words, k=8)),
            "rejected": " ".join(rng.choices(words, k=4)),
        }
        for i in range(60)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def bring(name, tmp_path, monkeypatch):
    """The `gpt2` profile with a model and pairs of one's own, cut to two steps and small batches."""
    save_model(tmp_path / "model", name)
    save_pairs(tmp_path / "pairs.jsonl")
    for name, value in (("OUTPUTS", "outputs"), ("MODEL", "model"), ("DATASET", "pairs.jsonl")):
        monkeypatch.setenv(f"RLHF_{name}", str(tmp_path / value))
    monkeypatch.setenv("RLHF_MAX_STEPS", "2")
    profile = load_profile("gpt2")
    decoding = dataclasses.replace(profile.decoding, max_new_tokens=12, beam_new_tokens=6)
    small = {"batch_size": 4, "gradient_accumulation": 1, "max_length": 128}
    return dataclasses.replace(
        profile,
        decoding=decoding,
        sft=dataclasses.replace(profile.sft, **small),
        reward=dataclasses.replace(profile.reward, **small),
    )


@pytest.fixture(params=ARCHITECTURES)
def brought(request, tmp_path, monkeypatch):
    return bring(request.param, tmp_path, monkeypatch)


def test_every_stage_runs_and_what_is_sampled_has_the_models_own_probabilities(brought, tmp_path, capsys):
    profile = brought
    model, tokenizer = models.prepare_base(profile)
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    assert model.generation_config.no_repeat_ngram_size in (None, 0)
    # 1: full fine-tuning, and QLoRA merged onto the base
    rows = load_preferences(profile)["train"]
    texts = {"prompt": [format_prompt(p) for p in rows["prompt"]], "completion": rows["chosen"]}
    examples = sft.tokenize(texts, tokenizer)
    for method in ("full", "qlora"):
        start, adapter = sft.start_model(profile, method)
        options = {"learning_rate": 1e-3, "epochs": 1, "adapter": adapter}
        trainer = sft.make_trainer(profile, f"sft_{method}", start, tokenizer, examples, None, **options)
        check_loss(trainer, examples)
        trainer.train()
        outputs.save_checkpoint(profile, f"sft_{method}_final", trainer.model, tokenizer)
    policy, merged = (models.load_policy(profile, key) for key in ("sft_full", "sft_qlora"))
    assert moved(model, policy) and moved(model, merged)
    # 2: the reward model, whose score does not depend on the batch
    pairs = load_pairs(profile, tokenizer)
    trainer = make_trainer(profile, models.new_reward_model(profile, 0), tokenizer, pairs["train"], pairs["validation"])
    trainer.train()
    outputs.save_checkpoint(profile, "reward_model_final", trainer.model, tokenizer)
    reward_model = models.load_reward_model(profile)
    answers, ended = ["Heat the oven until it is hot, and let it rest.", "No.", "A lid"], [True, False, True]
    together = score(reward_model, tokenizer, PROMPTS, answers, ended)
    alone = [
        score(reward_model, tokenizer, *([x] for x in row))[0] for row in zip(PROMPTS, answers, ended, strict=True)
    ]
    np.testing.assert_allclose(together, alone, atol=1e-4)
    assert together.std() > 0
    # Answers, by sampling and by beam search
    for options in ({"temperature": 0.7}, {"num_beams": 2}):
        given = generation.generate_answers(policy, tokenizer, PROMPTS, max_new_tokens=12, batch_size=2, **options)
        temperature = options.get("temperature", 1.0)
        measured = generation.answer_logprobs(policy, tokenizer, PROMPTS, given, batch_size=3, temperature=temperature)
        pairs = zip(PROMPTS, given, strict=True)
        expected = [plain_logprob(policy, tokenizer, *pair, temperature) for pair in pairs]
        np.testing.assert_allclose(measured, expected, atol=1e-4 * 12)
    # 3: two updates of PPO, the second after a pause
    whole, paused = (ppo_trainer(profile, policy, tokenizer, reward_model, tmp_path / name) for name in ("a", "b"))
    rollout = whole.generate([0, 1, 2], draws="test")
    expected = plain_rollout_logprobs(policy, rollout)
    torch.testing.assert_close(rollout.sampler_logprobs * rollout.mask, expected * rollout.mask, atol=1e-4, rtol=0)
    whole.train()
    paused.step()
    resumed = ppo_trainer(profile, policy, tokenizer, reward_model, tmp_path / "b")
    resumed.resume(paused.save())
    resumed.step()
    assert not moved(whole.policy, resumed.policy) and moved(policy, whole.policy)


@torch.no_grad()
def check_loss(trainer, examples) -> None:
    """The loss that is trained is that of the model's own logits."""
    model = trainer.model.eval()
    batch = trainer.data_collator([examples[i] for i in range(3)])
    logits = model(input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask")).logits[:, :-1].float()
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())
    assert trainer.compute_loss(model, batch).item() == pytest.approx(expected.item(), abs=1e-4)
    model.train()


def moved(model, other) -> bool:
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    return not all(torch.equal(a, b) for a, b in pairs)


def ppo_trainer(profile, policy, tokenizer, reward_model, checkpoints) -> PPOTrainer:
    settings = Settings(2, 4, 2, 2, 1, 1e-3, max_new_tokens=12, value_learning_rate=1e-3)
    trained = models.load_policy(profile, "sft_full")

    def reward(prompts, responses, ended):
        return score(reward_model, tokenizer, prompts, responses, ended)

    return PPOTrainer(trained, policy, reward, tokenizer, PROMPTS * 2, settings, checkpoints=checkpoints)


@torch.no_grad()
def plain_logprob(model, tokenizer, prompt, answer, temperature: float) -> float:
    """log p of an answer by the model's own forward pass over one text."""
    start = generation.encode_prompts(tokenizer, [prompt])[0]
    ids = torch.tensor([start + list(answer.token_ids)])
    logprobs = torch.log_softmax(model(input_ids=ids).logits[0, len(start) - 1 : -1] / temperature, dim=-1)
    return logprobs.gather(1, ids[0, len(start) :, None]).sum().item()


@torch.no_grad()
def plain_rollout_logprobs(model, rollout) -> torch.Tensor:
    """The same for every token of a rollout: (rows, tokens)."""
    result = torch.zeros(rollout.responses.shape)
    for row, (ids, seen) in enumerate(zip(rollout.sequences, rollout.attention, strict=True)):
        first = int(seen.nonzero()[0])
        logits = model(input_ids=ids[None, first:]).logits[0]
        logprobs = torch.log_softmax(logits[:-1], dim=-1).gather(1, ids[first + 1 :, None]).squeeze(1)
        result[row] = logprobs[-result.shape[1] :]
    return result


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "granite"])
def test_a_base_that_is_too_large_is_kept_once_under_adapters(name, tmp_path, monkeypatch, capsys):
    """Every stage again, on adapters that share their frozen 4-bit base; a checkpoint is an adapter alone."""
    profile = bring(name, tmp_path, monkeypatch)
    monkeypatch.setenv("RLHF_MEMORY_GB", "0.0001")
    _, tokenizer = models.prepare_base(profile)
    assert outputs.by_adapters(profile) and sft.methods(profile) == ("qlora",)
    assert models.policies(profile) == ("base", "sft_qlora", "ppo", "ppo_scratch")
    rows = load_preferences(profile)["train"]
    texts = {"prompt": [format_prompt(p) for p in rows["prompt"]], "completion": rows["chosen"]}
    start, adapter = sft.start_model(profile, "qlora")
    options = {"learning_rate": 1e-2, "epochs": 1, "adapter": adapter}
    trainer = sft.make_trainer(profile, "sft_qlora", start, tokenizer, sft.tokenize(texts, tokenizer), None, **options)
    trainer.train()
    outputs.save_checkpoint(profile, "sft_qlora_final", trainer.model, tokenizer)
    base = models.shared_base(profile)
    before = [weight.clone() for weight in base.parameters()]
    # The reward model goes on from the policy's adapter
    fresh, (policy, reference) = models.new_reward_model(profile, 0), (start_policy(profile) for _ in range(2))
    ids = torch.arange(10, 20)[None]
    states = [generation.trunk_of(m)(input_ids=ids).last_hidden_state for m in (fresh.base_model.model, policy, base)]
    torch.testing.assert_close(states[0], states[1])
    assert not torch.allclose(states[1], states[2], atol=1e-4)
    pairs = load_pairs(profile, tokenizer)
    make_trainer(profile, fresh, tokenizer, pairs["train"], pairs["validation"]).train()
    outputs.save_checkpoint(profile, "reward_model_final", fresh, tokenizer)
    reward_model, value_model = models.load_reward_model(profile), models.new_value_model(profile)
    trained = {name.removeprefix("base_model.model."): weight for name, weight in fresh.named_parameters()}
    for name, weight in reward_model.named_parameters():
        if weight.requires_grad:
            other = trained[name.replace("score.weight", "score.modules_to_save.default.weight")]
            assert weight.dtype == other.dtype == torch.float32 and torch.equal(weight, other)
    assert value_model(input_ids=ids).logits.item() == 0
    # Both PPOs move the adapter of their policy, and nothing else
    settings = Settings(2, 4, 2, 2, 1, 1e-2, max_new_tokens=12, answers_per_prompt=2, lam=1.0)

    def reward(*texts):
        return score(reward_model, tokenizer, *texts)

    ours = PPOTrainer(policy, reference, reward, tokenizer, PROMPTS * 2, settings, checkpoints=tmp_path / "ppo")
    rollout = ours.generate([0, 1, 2], draws="test")
    expected = plain_rollout_logprobs(policy, rollout) * rollout.mask
    torch.testing.assert_close(rollout.sampler_logprobs * rollout.mask, expected, atol=1e-4, rtol=0)
    ours.step()
    resumed = PPOTrainer(start_policy(profile), reference, reward, tokenizer, PROMPTS * 2, settings)
    resumed.resume(ours.save())
    for trainer in (ours, resumed):
        trainer.step()
    assert not moved(policy, resumed.policy) and moved(policy, reference)
    theirs = start_policy(profile)
    prompts = Dataset.from_dict({"input_ids": generation.encode_prompts(tokenizer, PROMPTS * 2)})
    settings = Settings(1, 4, 2, 1, 1, 1e-2, max_new_tokens=12)
    trl.make_trainer(profile, settings, theirs, reference, reward_model, value_model, tokenizer, prompts).train()
    assert moved(theirs, reference) and value_model(input_ids=ids).logits.item() != 0
    # What is saved is small, and comes back
    path = outputs.save_checkpoint(profile, "ppo_scratch_final", policy, tokenizer)
    assert outputs.is_adapter(path) and not (path / "model.safetensors").exists()
    torch.testing.assert_close(models.load_policy(profile, "ppo_scratch")(ids).logits, policy(ids).logits)
    everyone = (policy, reference, theirs, reward_model, value_model)
    frozen = {weight.data_ptr() for weight in base.parameters()}
    for model in everyone:
        own = [weight for name, weight in model.named_parameters() if weight.data_ptr() not in frozen]
        assert all(weight.requires_grad for weight in own) and len(own) < len(list(model.parameters()))
    # bitsandbytes rounds the biases of 4-bit layers to the precision that it computes in
    same = [torch.equal(a.bfloat16(), b.bfloat16()) for a, b in zip(before, base.parameters(), strict=True)]
    assert all(same)
    assert [weight for weight in base.parameters() if weight.requires_grad] == []


@pytest.mark.slow
def test_every_notebook_runs_by_adapters_and_tells_no_token_no_person_and_no_place(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    save_model(home / "model", "llama")
    save_pairs(home / "pairs.jsonl")
    given = PLANTED | {"RLHF_MODEL": str(home / "model"), "RLHF_DATASET": str(home / "pairs.jsonl")}
    small = {"RLHF_PROFILE": "gpt2", "RLHF_MEMORY_GB": "0.0001", "RLHF_MAX_STEPS": "1", "RLHF_THREADS": "1"}
    run_script(tmp_path / "outputs", "run_notebooks.py", **given, **small)
    made = {path.name for path in (tmp_path / "outputs" / "checkpoints" / "gpt2").iterdir()}
    assert made >= {"sft_qlora_final", "reward_model_final", "ppo_trl_final", "ppo_scratch_final", "ppo_aligned_final"}
    assert "sft_full_final" not in made
    compared = pd.read_csv(tmp_path / "outputs" / "evaluation" / "gpt2" / "kl.csv")
    assert list(compared.model) == ["base", "sft_qlora", "ppo", "ppo_scratch"]
    monkeypatch.setenv("RLHF_OUTPUTS", str(tmp_path / "outputs"))
    (tmp_path / "published").mkdir()
    assemble(load_profile("gpt2"), "user/rlhf", tmp_path / "published")
    assert {name: told(tmp_path / name, tmp_path, outputs.ROOT) for name in ("outputs", "published")} == {
        "outputs": [],
        "published": [],
    }


def start_policy(profile):
    return models.load_policy(profile, models.start_key(profile))
