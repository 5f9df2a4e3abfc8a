"""Frozen layers that policy, reference and value model share: the same numbers and gradients as the plain way."""

from rlhf import models
from rlhf.adapters import sharing_copy
from rlhf.generation import trunk_of
from rlhf.lab import base_model
from rlhf.ppo import actors, algorithm, shared_layers
from rlhf.ppo.settings import Settings
from rlhf.ppo.trainer import PPOTrainer

import pytest
import torch
import transformers
from conftest import TEXTS

SETTINGS = Settings(4, 8, 4, 2, 2, 1e-3, max_new_tokens=12, kl_coef=0.1, lam=0.9, seed=1)
PROMPTS = ["How do I roast tofu slices in a small apartment?", "Why?", "Which tools help with freezing pork chops?"] * 4
LLAMA = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
KINDS = {
    "GPT2": {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 256},
    "Llama": LLAMA | {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "Gemma2": LLAMA | {"num_key_value_heads": 2, "head_dim": 8},
    "Granite": LLAMA | {"num_key_value_heads": 2, "embedding_multiplier": 3.0},
    "OPT": {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "ffn_dim": 64},
}


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = base_model.train_tokenizer(TEXTS * 2, vocabulary=600, context=256)
    if tokenizer.pad_token in (None, tokenizer.eos_token):
        tokenizer.add_special_tokens({"pad_token": models.PAD})
    return tokenizer


def new_model(kind: str, tokenizer, share: float = 0.5, classifier: bool = False):
    """A random model of four layers, the upper ones of which are to be trained; the same for each call."""
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = getattr(transformers, f"{kind}Config")(vocab_size=len(tokenizer), num_labels=1, **KINDS[kind], **ids)
    torch.manual_seed(0)
    auto = transformers.AutoModelForSequenceClassification if classifier else transformers.AutoModelForCausalLM
    model = auto.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    shared_layers.freeze_lower(model, share)
    return model.eval()


def by_words(prompts, responses, ended):
    return [float(len(set(response.split()))) for response in responses]


def trainer_of(kind, tokenizer, **options) -> PPOTrainer:
    policy = new_model(kind, tokenizer)
    reference = sharing_copy(policy)
    with torch.no_grad():  # a policy that has moved
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return PPOTrainer(policy, reference, by_words, tokenizer, PROMPTS, SETTINGS, **options)


def value_model_of(kind, tokenizer, policy):
    """A value model on the policy's own frozen layers."""
    value_model = new_model(kind, tokenizer, classifier=True)
    trunk = sharing_copy(policy)
    setattr(value_model, value_model.base_model_prefix, trunk_of(trunk))
    value_model.score.requires_grad_(True)
    return value_model


@pytest.mark.parametrize("kind", ["GPT2", "Llama", "Gemma2"])
def test_losses_and_gradients_are_those_of_the_plain_way(kind, tokenizer, monkeypatch):
    shared = trainer_of(kind, tokenizer)
    monkeypatch.setattr(actors, "shared_by", lambda models: None)
    plain = trainer_of(kind, tokenizer)
    assert shared.shared.count == 2 and plain.shared is None
    found = []
    for trainer in (shared, plain):
        given = trainer.experience(range(8), draws="test")
        rollout, rows = given.rollout, torch.arange(8)
        logprobs, values = trainer.forward(rollout, rows)
        arguments = logprobs, given.logprobs + 0.1, given.advantages, rollout.mask
        loss, _ = algorithm.policy_loss(*arguments, SETTINGS.cliprange)
        loss = loss + algorithm.value_loss(values, given.values + 0.1, given.returns, rollout.mask, 0.2)
        loss.backward()
        gradients = {name: w.grad for name, w in trainer.policy.named_parameters() if w.grad is not None}
        found.append((given, loss, gradients, trainer.value_head.weight.grad))
    (given, loss, gradients, head), (other, other_loss, other_gradients, other_head) = found
    assert torch.equal(given.rollout.responses, other.rollout.responses)
    for name in ("logprobs", "values", "advantages", "returns"):
        torch.testing.assert_close(getattr(given, name), getattr(other, name), atol=1e-5, rtol=1e-5)
    assert given.row == pytest.approx(other.row, abs=1e-5) and given.row["kl"] > 1e-3
    torch.testing.assert_close(loss, other_loss, atol=1e-5, rtol=1e-5)
    assert set(gradients) == set(other_gradients) and any(g.abs().max() > 1e-3 for g in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, other_gradients[name], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(head, other_head, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["GPT2", "Llama"])
def test_lower_layers_run_once_for_a_rollout_and_stay_as_they_are(kind, tokenizer):
    trainer = trainer_of(kind, tokenizer)
    policy, runs = trainer.policy, []
    before = {name: weight.clone() for name, weight in policy.named_parameters()}
    lower = trainer.shared.lower
    trainer.shared.lower = lambda **inputs: runs.append(len(inputs["input_ids"])) or lower(**inputs)
    trainer.step()
    assert sum(runs) == SETTINGS.batch_size
    moved = {name for name, weight in policy.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == {name for name, weight in policy.named_parameters() if weight.requires_grad}
    assert {int(name.split(".")[2]) for name in moved} == {2, 3}


def test_value_model_shares_them_too(tokenizer, monkeypatch):
    rows = []
    for way in ("shared", "plain"):
        if way == "plain":
            monkeypatch.setattr(actors, "shared_by", lambda models: None)
        policy = new_model("Llama", tokenizer)
        three = policy, sharing_copy(policy), value_model_of("Llama", tokenizer, policy)
        trainer = PPOTrainer(*three[:2], by_words, tokenizer, PROMPTS, SETTINGS, value_model=three[2])
        assert (trainer.shared is not None) == (way == "shared")
        rows.append([trainer.step() for _ in range(2)])
    for row, other in zip(*rows, strict=True):
        assert row == pytest.approx(other, abs=1e-4)


def test_copies_take_the_memory_of_the_trained_layers_alone(tokenizer):
    policy = new_model("Llama", tokenizer)
    shared = {weight.data_ptr() for weight in policy.parameters()}
    own = [name for name, w in sharing_copy(policy).named_parameters() if w.data_ptr() not in shared]
    assert own == [name for name, weight in policy.named_parameters() if weight.requires_grad]


def test_run_goes_on_from_a_checkpoint_of_the_trained_layers(tokenizer, tmp_path):
    whole, paused = (trainer_of("Llama", tokenizer, checkpoints=tmp_path / name) for name in "ab")
    for trainer in (whole, paused):
        trainer.step()
    path = paused.save()
    saved = (path / "policy.safetensors").stat().st_size
    assert saved < sum(weight.nbytes for weight in whole.policy.parameters()) / 2
    resumed = trainer_of("Llama", tokenizer)
    resumed.resume(path)
    assert whole.step() == resumed.step()


@pytest.mark.parametrize(("kind", "share", "separate"), [("Llama", 1, False), ("Llama", 0.5, True), ("OPT", 1, False)])
def test_nothing_is_shared_where_it_would_not_be_the_same(kind, share, separate, tokenizer):
    """All weights trained; another reference; layers that are not found right in the trunk."""
    policy = new_model(kind, tokenizer, share)
    if kind == "OPT":
        policy.requires_grad_(False)
        policy.lm_head.requires_grad_(True)
    reference = new_model(kind, tokenizer, 1) if separate else sharing_copy(policy)
    assert shared_layers.shared_by([policy, reference]) is None


def test_architecture_that_scales_its_embeddings_is_run_whole_and_named(tokenizer, capsys):
    trainer = trainer_of("Granite", tokenizer)
    assert trainer.shared is None and "layers of GraniteForCausalLM can't be run apart" in capsys.readouterr().out
    trainer.step()


@pytest.mark.parametrize(("share", "layers"), [(0.1, {3}), (0.5, {2, 3}), (0.51, {1, 2, 3}), (1, {0, 1, 2, 3})])
def test_upper_layers_are_trained_rounded_up(share, layers, tokenizer):
    names = [name for name, weight in new_model("GPT2", tokenizer, share).named_parameters() if weight.requires_grad]
    assert {int(name.split(".")[2]) for name in names if ".h." in name} == layers
    assert all(".h." in name for name in names) == (share < 1)


def test_what_was_frozen_in_the_upper_layers_stays_so(tokenizer):
    model = new_model("Llama", tokenizer, 1).requires_grad_(False)
    model.model.layers[3].mlp.requires_grad_(True)  # as an adapter would be
    before = {name for name, weight in model.named_parameters() if weight.requires_grad}
    shared_layers.freeze_lower(model, 0.5)
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == before


@pytest.mark.parametrize("share", [0, 1.5, -1])
def test_share_of_the_layers_that_is_none_is_named(share, tokenizer):
    with pytest.raises(ValueError, match=rf"a share of {share} of the layers can't be trained"):
        new_model("Llama", tokenizer, share)


def test_layers_that_are_not_found_are_named(tokenizer):
    with pytest.raises(ValueError, match="OPTForCausalLM does not have its layers right in its trunk"):
        new_model("OPT", tokenizer, 0.5)


def test_policy_continues_the_tokens_that_are_given(tokenizer):
    """And the reward sees what follows them as it stands, white space too: it may go on within a word."""
    policy, prompts = new_model("Llama", tokenizer), ["one", "two", "three", "four"] * 2
    encoded, seen = [[5 + i, 9, 11 + i] for i in range(8)], []

    def reward(given, responses, ended):
        seen.extend(zip(given, responses, strict=True))
        return by_words(given, responses, ended)

    trainer = PPOTrainer(policy, sharing_copy(policy), reward, tokenizer, prompts, SETTINGS, encoded=encoded)
    rollout = trainer.experience(range(8), draws="test").rollout
    assert rollout.sequences[:, :3].tolist() == encoded
    tokens = [
        [t for t, kept in zip(*row, strict=True) if kept] for row in zip(rollout.responses, rollout.mask, strict=True)
    ]
    assert seen == list(zip(prompts, tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True))
    assert any(text != text.strip() for _, text in seen)
    with pytest.raises(ValueError, match="7 rows of tokens are given for 8 prompts"):
        PPOTrainer(policy, sharing_copy(policy), reward, tokenizer, prompts, SETTINGS, encoded=encoded[:7])


def test_checkpoint_of_other_tokens_is_refused(tokenizer, tmp_path):
    encoded = [[5 + i, 9, 11 + i] for i in range(12)]
    trainer = trainer_of("Llama", tokenizer, encoded=encoded, checkpoints=tmp_path)
    path = trainer.save()
    with pytest.raises(ValueError, match=r"is of another run \(prompts: "):
        trainer_of("Llama", tokenizer, encoded=encoded[::-1]).resume(path)
