"""Foreign pairs: sentences with a word, or two words side by side, that the lab's corpus never has.

A measure of fluency that knows nothing of what is true or asked for. The corpus is all text that the shipped base was
pretrained on, whose pairs are shipped with it, and the training pairs. All objects are one word here, so that an answer
about a held-out combination is not foreign for its object.
"""

from collections.abc import Iterable
from functools import cache

from rlhf.lab.base_model import SHIPPED
from rlhf.lab.corpus import preference_table
from rlhf.lab.gold import mask_objects
from rlhf.lab.world import sentences

import numpy as np

PAIRS_FILE = "word_pairs.txt"  # in SHIPPED: a pair of neighbours of the pretraining text in each line
EDGE = "|"  # the start and the end of a sentence are words too


def _sentences(text: str) -> list[list[tuple[str, str]]]:
    """The pairs of neighbouring words of each sentence."""
    found = []
    for sentence in sentences(text):
        words = mask_objects(sentence).split()
        found.append(list(zip([EDGE, *words], [*words, EDGE], strict=True)))
    return found


def word_pairs(texts: Iterable[str]) -> set[tuple[str, str]]:
    """All pairs of neighbouring words of a sentence in these texts, (EDGE, first) and (last, EDGE) among them."""
    return {pair for text in texts for sentence in _sentences(text) for pair in sentence}


@cache
def _known(size: int, seed: int) -> frozenset[tuple[str, str]]:
    pretrained = (SHIPPED / PAIRS_FILE).read_text(encoding="utf-8").splitlines()
    pairs = preference_table("train", size, seed)
    pairs = pairs[pairs.error != "cut_off"]  # what is cut off ends anywhere
    return frozenset(tuple(line.split(" ")) for line in pretrained) | word_pairs([*pairs.chosen, *pairs.rejected])


def foreign_pairs(profile, responses: list[str]) -> np.ndarray:
    """The share of each response's sentences that have a foreign word or pair: (responses,); 0 where it is empty."""
    known = _known(profile.lab.pairs[0], profile.seed)
    shares = []
    for response in responses:
        said = _sentences(response)
        shares.append(np.mean([not known.issuperset(pairs) for pairs in said]) if said else 0.0)
    return np.array(shares)
