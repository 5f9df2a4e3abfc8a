"""Stage 1's data: the chosen answers as prompt and completion, and the lengths of the texts."""

from collections import Counter

from rlhf.data import drop_too_long, load_preferences
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
    limit = min(profile.sft.max_length, tokenizer.model_max_length)
    for split, rows in load_preferences(profile).items():
        fitting = drop_too_long(rows, tokenizer, limit, ("chosen",), f"{split} examples")
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
