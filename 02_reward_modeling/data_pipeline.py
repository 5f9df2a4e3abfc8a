"""Stage 2's data: preference pairs as the tokens that the reward model reads."""

from rlhf.data import drop_too_long, load_preferences
from rlhf.profiles import Profile
from rlhf.rewards import encode

from datasets import Dataset, DatasetDict


def prepare_reward_dataset(profile: Profile, tokenizer) -> DatasetDict:
    """Train, validation and test pairs with prompt, chosen, rejected and their tokens chosen_ids, rejected_ids.

    The tokens are those of rlhf.rewards.score: the template, the answer, EOS. A pair of which one side is longer than
    the profile's max_length is counted and left out; TRL would drop it without a word. Nothing is padded here: the
    collator pads to the longest text of a batch.
    """
    splits = {}
    for split, rows in load_preferences(profile).items():
        rows = drop_too_long(rows, tokenizer, profile.reward.max_length, ("chosen", "rejected"), f"{split} pairs")
        columns = {name: list(rows[name]) for name in ("prompt", "chosen", "rejected")}
        for side in ("chosen", "rejected"):
            columns[f"{side}_ids"] = encode(tokenizer, columns["prompt"], columns[side])
        splits[split] = Dataset.from_dict(columns)
    return DatasetDict(splits)
