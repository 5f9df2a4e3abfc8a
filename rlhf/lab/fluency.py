"""Foreign pairs: sentences with a word, or two words side by side, that the lab's corpus never has.

A measure of fluency that knows nothing of what is true or asked for. All objects are one word here, so that an answer
about a held-out combination is not foreign for its object.
"""

from functools import cache

from rlhf.lab.corpus import documents, preference_table
from rlhf.lab.gold import mask_objects
from rlhf.lab.world import sentences

import numpy as np

DOCUMENTS = 20_000  # of the pretraining text at most, beside the training pairs
EDGE = "|"  # the start and the end of a sentence are words too


def _sentences(text: str) -> list[list[tuple[str, str]]]:
    """The pairs of neighbouring words of each sentence."""
    found = []
    for sentence in sentences(text):
        words = mask_objects(sentence).split()
        found.append(list(zip([EDGE, *words], [*words, EDGE], strict=True)))
    return found


@cache
def _known(size: int, count: int, seed: int) -> frozenset[tuple[str, str]]:
    pairs = preference_table("train", size, seed)
    pairs = pairs[pairs.error != "cut_off"]  # what is cut off ends anywhere
    texts = [*documents(count, seed), *pairs.chosen, *pairs.rejected]
    return frozenset(pair for text in texts for sentence in _sentences(text) for pair in sentence)


def foreign_pairs(profile, responses: list[str]) -> np.ndarray:
    """The share of each response's sentences that have a foreign word or pair: (responses,); 0 where it is empty."""
    known = _known(profile.lab.pairs[0], min(DOCUMENTS, profile.lab.documents), profile.seed)
    shares = []
    for response in responses:
        said = _sentences(response)
        shares.append(np.mean([not known.issuperset(pairs) for pairs in said]) if said else 0.0)
    return np.array(shares)
