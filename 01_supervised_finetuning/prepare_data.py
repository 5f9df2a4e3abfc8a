"""Stage 1's data: chosen answers as prompt and completion, the lengths of texts, a pair of the lab to look at."""

from collections import Counter

from rlhf.data import drop_too_long, load_preferences
from rlhf.lab.corpus import preference_table, rater_prefers
from rlhf.lab.world import parse_question
from rlhf.models import load_tokenizer
from rlhf.profiles import Profile
from rlhf.template import format_prompt, format_response
from rlhf.tokens import encode

import pandas as pd
from datasets import Dataset, DatasetDict


def get_sft_datasets(profile: Profile) -> DatasetDict:
    """Train, validation and test examples with the columns prompt (in the template) and completion (the chosen answer).

    A prompt with several pairs gives one example per distinct chosen answer. Examples longer than the profile's
    max_length or the model's context are counted and left out. Needs the tokenizer of checkpoints/<profile>/base.
    """
    tokenizer, splits = load_tokenizer(profile), DatasetDict()
    for split, rows in load_preferences(profile).items():
        fitting = drop_too_long(rows, tokenizer, profile.sft.max_length, ("chosen",), f"{split} examples")
        texts = zip(map(format_prompt, fitting["prompt"]), map(format_response, fitting["chosen"]), strict=True)
        splits[split] = Dataset.from_list([{"prompt": p, "completion": c} for p, c in dict.fromkeys(texts)])
    return splits


def length_histogram(profile: Profile, tokenizer, rows: Dataset) -> pd.DataFrame:
    """How many prompts, chosen and rejected answers are how long: columns text, tokens (left edge of a bin), count."""
    bins, step = [], max(4, profile.sft.max_length // 64)
    for column in ("prompt", "chosen", "rejected"):
        lengths = [len(ids) for ids in encode(tokenizer, rows[column])]
        counts = Counter(length // step * step for length in lengths)
        bins += [(column, left, counts[left]) for left in range(0, max(counts) + step, step)]
    return pd.DataFrame(bins, columns=["text", "tokens", "count"])


def unsure_pair(profile: Profile) -> pd.Series:
    """The lab's first training pair with a condition in its question where the rater was right but less than 95 % sure.

    Its fields are the columns of preference_table.
    """
    rows = preference_table("train", profile.lab.pairs[0], profile.seed)
    return next(
        row
        for _, row in rows.iterrows()
        if 0.5 < rater_prefers(row.gold_chosen, row.gold_rejected) < 0.95 and parse_question(row.prompt).condition
    )
