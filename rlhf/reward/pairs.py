"""Preference pairs as the tokens that a reward model reads, and in the order in which it is trained on them."""

import random

from rlhf.data import drop_too_long, first_sentence, keep_short, load_preferences
from rlhf.profiles import Profile
from rlhf.reward.scoring import encode

from datasets import Dataset, DatasetDict, concatenate_datasets

DISTANCE = 3  # in the order of prompts: nearer ones often ask the same thing in other words
# How the couples are found, and their shares. Prompts that begin alike differ in their last words, mostly in the thing
# asked about. At the lab profile that is learned later than the action, and with half of the couples not in every run.
BEGIN_ALIKE, END_ALIKE = 0.65, 0.35


def load_pairs(profile: Profile, tokenizer) -> DatasetDict:
    """Train, validation and test pairs with prompt, chosen, rejected and their tokens chosen_ids, rejected_ids.

    The tokens are those of scoring.encode, not padded: the collator pads to the longest text of a batch. A pair of
    which one side is longer than the profile's max_length or the model's context is counted and left out; TRL would
    drop it without a word. Raises ValueError for data without rejected answers.
    """
    splits = DatasetDict()
    for split, rows in load_preferences(profile).items():
        if not all(rows["rejected"]):
            raise ValueError(
                f"data set {profile.dataset!r} has no rejected answers: it serves fine-tuning (the notebooks of folder "
                f"01) alone; a reward model and PPO need the columns prompt, chosen, rejected."
            )
        rows = drop_too_long(rows, tokenizer, profile.reward.max_length, ("chosen", "rejected"), f"{split} pairs")
        splits[split] = _with_tokens(rows, tokenizer)
    return splits


def mismatched_pairs(pairs: Dataset, share: float, profile: Profile, tokenizer) -> Dataset:
    """Pairs of which the rejected answer begins the chosen answer to a similar prompt; about `share` times len(pairs).

    Both answers are good in themselves, so only the prompt tells them apart, neither length nor style. After Liu et al.
    2024, "RRM: Robust Reward Model Training Mitigates Reward Hacking", who take the answers to random prompts; those to
    similar prompts are harder. Similar are prompts that stand close together when all are sorted by their first words,
    or for a smaller share by their last words. Of each answer only the first sentence is taken: it says what the answer
    is about, at half the cost, and what the model compares stands close to where it is scored.

    Rows 2k and 2k + 1 are a couple: two prompts and the same two answers, each chosen once and rejected once. In one
    batch, what an answer is worth to every prompt cancels, and the gradient is left with the fit. Goyal et al. 2017,
    "Making the V in VQA Matter", balance pictures in this way. A couple with a text that is too long (load_pairs) is
    counted and left out. `pairs` and the result have the columns of load_pairs.
    """
    prompts, chosen = list(pairs["prompt"]), [first_sentence(answer) for answer in pairs["chosen"]]
    words = [prompt.split() for prompt in prompts]
    rng, rows = random.Random(profile.seed), []
    for key, part in ((lambda i: words[i], BEGIN_ALIKE), (lambda i: words[i][::-1], END_ALIKE)):
        order = sorted(range(len(words)), key=key)
        neighbours = zip(order, order[DISTANCE:] + order[:DISTANCE], strict=True)
        usable = [(i, j) for i, j in neighbours if prompts[i] != prompts[j] and chosen[i] != chosen[j]]
        for couple in rng.sample(usable, min(len(usable), round(part * share / 2 * len(pairs)))):
            for i, j in (couple, couple[::-1]):
                rows.append({"prompt": prompts[i], "chosen": chosen[i], "rejected": chosen[j]})
    if not rows:  # one prompt, or one answer, for all pairs
        return pairs.select([])
    mismatched = _with_tokens(Dataset.from_list(rows), tokenizer)
    lengths = _lengths(mismatched)
    of_couples = [max(lengths[i], lengths[i ^ 1]) for i in range(len(lengths))]  # i ^ 1 is the other row of a couple
    limit = min(profile.reward.max_length, tokenizer.model_max_length)
    return keep_short(mismatched, of_couples, limit, "mismatched pairs")


def training_order(lengths: list[int], batch_size: int, seed: int, together: int = 1) -> list[int]:
    """The numbers of the texts in a random order of batches of similar length, for little padding.

    Each run of 20 batches is sorted, cut and shuffled. Every `together` texts in a row stay in one batch.
    """
    rng = random.Random(seed)
    groups = [range(i, i + together) for i in range(0, len(lengths), together)]
    rng.shuffle(groups)
    size = max(1, batch_size // together)
    order = []
    for start in range(0, len(groups), 20 * size):
        run = sorted(groups[start : start + 20 * size], key=lambda group: max(lengths[i] for i in group))
        batches = [run[i : i + size] for i in range(0, len(run), size)]
        rng.shuffle(batches)
        order += [i for batch in batches for group in batch for i in group]
    return order


def training_pairs(profile: Profile, tokenizer, pairs: Dataset) -> Dataset:
    """The pairs in the order of training: first mismatched ones (mismatched_pairs), then `pairs`.

    Where one answer is rambling or cut off, length and style give it away, and a model that has learned to look at them
    gains little by reading further. Pairs that only the prompt decides come first, so that the model compares answer
    and prompt before the shortcuts pay.
    """
    settings = profile.reward
    ordered = [pairs.select(training_order(_lengths(pairs), settings.batch_size, profile.seed))]
    if settings.mismatched_first:
        mismatched = mismatched_pairs(pairs, settings.mismatched_first, profile, tokenizer)
        order = training_order(_lengths(mismatched), settings.batch_size, profile.seed, together=2)
        ordered.insert(0, mismatched.select(order))
    return concatenate_datasets(ordered)


def _lengths(pairs: Dataset) -> list[int]:
    """Tokens of the longer text of each pair."""
    return [max(len(c), len(r)) for c, r in zip(pairs["chosen_ids"], pairs["rejected_ids"], strict=True)]


def _with_tokens(rows: Dataset, tokenizer) -> Dataset:
    columns = {name: list(rows[name]) for name in ("prompt", "chosen", "rejected")}
    for side in ("chosen", "rejected"):
        columns[f"{side}_ids"] = encode(tokenizer, columns["prompt"], columns[side], [True] * len(rows))
    return Dataset.from_dict(columns)
