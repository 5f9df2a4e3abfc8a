"""A reward model out of labels: a scalar whose sigmoid is the probability that a text is of class 1."""

from rlhf import runtime
from rlhf.adapters import HEAD
from rlhf.profiles import Profile
from rlhf.tokens import encode
from rlhf.training import StageTrainer, lora_config, step_arguments

import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments


def examples(tokenizer, labelled: Dataset) -> Dataset:
    """Columns input_ids and labels of the columns sentence and label; no EOS, so that any text can be read as it is."""
    ids = encode(tokenizer, labelled["sentence"])
    return Dataset.from_dict({"input_ids": ids, "labels": list(labelled["label"])})


def with_adapter(profile: Profile, model) -> PeftModel:
    """A classifier of models.new_reward_model with profile.reward's adapter on its trunk; its head is trained whole."""
    with runtime.isolated_generator(profile.seed):  # the adapter's first weights are drawn here
        return get_peft_model(model, lora_config(profile.reward.lora, "SEQ_CLS", model, modules_to_save=[HEAD]))


class _LabelTrainer(StageTrainer, Trainer):
    """Binary cross-entropy of one logit per text."""

    def compute_loss(self, model, inputs, return_outputs=False, **_):
        labels = inputs.pop("labels").float()
        output = model(**inputs)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(output.logits.squeeze(-1).float(), labels)
        return (loss, output) if return_outputs else loss


def make_trainer(profile: Profile, run: str, model, tokenizer, train: Dataset, learning_rate: float) -> Trainer:
    """A trainer of `model` on the columns input_ids and labels (0 or 1); each batch is padded on the right.

    model: anything that gives one logit for each text from input_ids and attention_mask, as the classifiers of
    transformers do, with or without an adapter. Steps, batches and warm-up are those of profile.reward.
    """
    config = TrainingArguments(
        **step_arguments(profile, run, profile.reward, len(train)),
        learning_rate=learning_rate,
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
    )
    tokenizer.padding_side = "right"
    collator = DataCollatorWithPadding(tokenizer)
    return _LabelTrainer(model=model, args=config, train_dataset=train, data_collator=collator)
