"""Stage 2's data: preference pairs as the tokens that the reward model reads."""

import random

from rlhf.data import drop_too_long, load_preferences
from rlhf.profiles import Profile
from rlhf.rewards import encode

from datasets import Dataset, DatasetDict, concatenate_datasets

DISTANCE = 3  # in the order of prompts: nearer ones often ask the same thing in other words


def prepare_reward_dataset(profile: Profile, tokenizer) -> DatasetDict:
    """Train, validation and test pairs with prompt, chosen, rejected and their tokens chosen_ids, rejected_ids.

    The tokens are those of rlhf.rewards.score: the template, the answer, EOS. A pair of which one side is longer than
    the profile's max_length is counted and left out; TRL would drop it without a word. Nothing is padded here: the
    collator pads to the longest text of a batch.
    """
    splits = {}
    for split, rows in load_preferences(profile).items():
        rows = drop_too_long(rows, tokenizer, profile.reward.max_length, ("chosen", "rejected"), f"{split} pairs")
        splits[split] = _with_tokens(rows, tokenizer)
    return DatasetDict(splits)


def mismatched_pairs(pairs: Dataset, share: float, profile: Profile, tokenizer) -> Dataset:
    """Pairs of which the rejected answer is the chosen answer to a similar prompt; about `share` times len(pairs).

    Both answers are good in themselves, so neither length nor style tells them apart: only the prompt does. No new
    label is needed. After Liu et al. 2024, "RRM: Robust Reward Model Training Mitigates Reward Hacking", who take the
    answers to random prompts; those to similar prompts are harder. Similar are prompts that stand close together when
    all are sorted by their first words, for one half of the pairs, or by their last words, for the other.

    `pairs` and the result have the columns of prepare_reward_dataset. Texts over the profile's max_length are left out.
    """
    prompts, chosen = list(pairs["prompt"]), list(pairs["chosen"])
    words = [prompt.split() for prompt in prompts]
    rng = random.Random(profile.seed)
    rows = {"prompt": [], "chosen": [], "rejected": []}
    for key in (lambda i: words[i], lambda i: words[i][::-1]):
        order = sorted(range(len(words)), key=key)
        neighbours = zip(order, order[DISTANCE:] + order[:DISTANCE], strict=True)
        usable = [(i, j) for i, j in neighbours if prompts[i] != prompts[j] and chosen[i] != chosen[j]]
        for i, j in rng.sample(usable, min(len(usable), round(share / 2 * len(pairs)))):
            rows["prompt"].append(prompts[i])
            rows["chosen"].append(chosen[i])
            rows["rejected"].append(chosen[j])
    rows = Dataset.from_dict(rows)
    if len(rows):
        rows = drop_too_long(rows, tokenizer, profile.reward.max_length, ("chosen", "rejected"), "mismatched pairs")
    return _with_tokens(rows, tokenizer)


def training_order(lengths: list[int], batch_size: int, seed: int) -> list[int]:
    """The numbers of the texts in a random order of batches of similar length, for little padding.

    Each run of 20 batches is sorted, cut and shuffled.
    """
    rng = random.Random(seed)
    rows = list(range(len(lengths)))
    rng.shuffle(rows)
    order = []
    for start in range(0, len(rows), 20 * batch_size):
        run = sorted(rows[start : start + 20 * batch_size], key=lambda i: lengths[i])
        batches = [run[i : i + batch_size] for i in range(0, len(run), batch_size)]
        rng.shuffle(batches)
        order += [i for batch in batches for i in batch]
    return order


def training_pairs(profile: Profile, tokenizer, pairs: Dataset) -> Dataset:
    """The pairs in the order of training: first mismatched ones (mismatched_pairs), then `pairs`.

    Where one answer is rambling or cut off, length and style give it away, and a model that has learned to look at them
    gains little by reading further. Pairs that only the prompt decides come first, so that the model compares answer
    and prompt before the shortcuts pay.
    """
    settings = profile.reward
    parts = [pairs]
    if settings.mismatched_first:
        parts.insert(0, mismatched_pairs(pairs, settings.mismatched_first, profile, tokenizer))
    ordered = []
    for part in parts:
        lengths = [max(len(c), len(r)) for c, r in zip(part["chosen_ids"], part["rejected_ids"], strict=True)]
        ordered.append(part.select(training_order(lengths, settings.batch_size, profile.seed)))
    return concatenate_datasets(ordered)


def _with_tokens(rows: Dataset, tokenizer) -> Dataset:
    columns = {name: list(rows[name]) for name in ("prompt", "chosen", "rejected")}
    for side in ("chosen", "rejected"):
        columns[f"{side}_ids"] = encode(tokenizer, columns["prompt"], columns[side])
    return Dataset.from_dict(columns)
