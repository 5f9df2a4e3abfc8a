"""Stage 2's data: what the preference pairs give away by their length, and what is wrong with the rejected answers."""

from collections import Counter

from rlhf.data import error_kinds
from rlhf.lab import gold_agreement
from rlhf.metrics import length_rule
from rlhf.profiles import Profile

import pandas as pd
from datasets import Dataset


def length_differences(pairs: Dataset) -> pd.DataFrame:
    """Words of the chosen minus words of the rejected answer: columns difference, count."""
    difference = [len(c.split()) - len(r.split()) for c, r in zip(pairs["chosen"], pairs["rejected"], strict=True)]
    return pd.DataFrame(sorted(Counter(difference).items()), columns=["difference", "count"])


def by_error(profile: Profile, pairs: Dataset) -> pd.DataFrame:
    """Each kind of error in the rejected answers: columns error, share, n, length_rule, gold_agreement.

    The last two are the share of pairs in which that rule picks the chosen answer; gold_agreement is NaN for real data.
    """
    by_length, by_gold = length_rule(pairs["chosen"], pairs["rejected"]), gold_agreement(profile, pairs)
    columns = {"error": error_kinds(profile, pairs), "length_rule": by_length, "gold_agreement": by_gold}
    groups = pd.DataFrame(columns).groupby("error")
    table = groups.mean()
    table.insert(0, "n", groups.size())
    table.insert(0, "share", table.n / len(pairs))
    return table.reset_index()
