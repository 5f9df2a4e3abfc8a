"""A reward model out of labels: the loss is the cross-entropy of the last real token's logit, for any classifier."""

import dataclasses

from rlhf import models
from rlhf.reward import classifier
from rlhf.training import logged

import pytest
import torch
from datasets import Dataset
from transformers.modeling_outputs import SequenceClassifierOutput

ROWS = Dataset.from_dict({"sentence": ["good good film", "bad film", "what a good one", "bad, bad and bad again"] * 8})
ROWS = ROWS.add_column("label", [1, 0, 1, 0] * 8)


@pytest.fixture
def many_steps(profile_with_sft):
    return dataclasses.replace(profile_with_sft, max_steps=None)


def trainer_of(profile, tokenizer, model, rate=1e-2):
    return classifier.make_trainer(profile, "test", model, tokenizer, classifier.examples(tokenizer, ROWS), rate)


def test_examples_have_no_end_of_text(tokenizer):
    rows = classifier.examples(tokenizer, ROWS)
    assert rows.column_names == ["input_ids", "labels"] and rows["labels"][:4] == [1, 0, 1, 0]
    assert rows["input_ids"][1] == tokenizer("bad film")["input_ids"]


def test_loss_is_the_binary_cross_entropy_of_each_text_alone(profile_with_sft):
    tokenizer = models.load_tokenizer(profile_with_sft)
    model = models.new_reward_model(profile_with_sft, seed=3)
    trainer = trainer_of(profile_with_sft, tokenizer, model.eval())
    rows = [trainer.train_dataset[i] for i in range(4)]
    losses = []
    for row in rows:
        with torch.no_grad():
            logit = model(torch.tensor([row["input_ids"]])).logits.squeeze()
        losses.append(-torch.nn.functional.logsigmoid(logit if row["labels"] else -logit).item())
    batch = trainer.data_collator([dict(row) for row in rows])
    with torch.no_grad():
        assert trainer.compute_loss(model, batch).item() == pytest.approx(sum(losses) / 4, abs=1e-5)


def test_adapter_and_head_learn_and_the_trunk_stays(many_steps):
    tokenizer = models.load_tokenizer(many_steps)
    model = classifier.with_adapter(many_steps, models.new_reward_model(many_steps, seed=0))
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert all("lora_" in name or "score" in name for name in trained) and any("score" in name for name in trained)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    trainer = trainer_of(dataclasses.replace(many_steps, max_steps=30), tokenizer, model)
    trainer.args.max_steps = 30
    trainer.train()
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == trained
    losses = logged(trainer, "loss").loss
    assert losses.iloc[-1] < 0.5 * losses.iloc[0]


def test_two_runs_with_one_seed_are_the_same(profile_with_sft):
    tokenizer, weights = models.load_tokenizer(profile_with_sft), []
    for _ in range(2):
        torch.rand(7)  # what ran before
        model = classifier.with_adapter(profile_with_sft, models.new_reward_model(profile_with_sft, seed=0))
        trainer_of(profile_with_sft, tokenizer, model).train()
        weights.append([weight.clone() for weight in model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*weights, strict=True))


def test_any_module_that_gives_one_logit_can_be_trained(profile_with_sft):
    class Small(torch.nn.Module):
        def __init__(self, size):
            super().__init__()
            self.bag = torch.nn.EmbeddingBag(size, 1, mode="sum")

        def forward(self, input_ids, attention_mask):
            return SequenceClassifierOutput(logits=self.bag(input_ids, per_sample_weights=attention_mask.float()))

    tokenizer = models.load_tokenizer(profile_with_sft)
    model = Small(len(tokenizer))
    before = model.bag.weight.detach().clone()
    trainer_of(profile_with_sft, tokenizer, model).train()
    assert not torch.equal(before, model.bag.weight)
