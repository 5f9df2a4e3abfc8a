"""Raters, each with a name and `rank(item)`: a rank for each answer of the item, or None where they skip it.

1 is the best rank, answers that are equally good share one, and no rank is left out: [2, 1, 2]. The third rater is a
person, whose ranks are those of a journal (rlhf.collect.journal).
"""

from collections import Counter
from collections.abc import Sequence

from rlhf.collect.items import Item
from rlhf.lab.corpus import RATER_TEMPERATURE
from rlhf.lab.gold import gold_score
from rlhf.reward.scoring import score

import numpy as np
from scipy.stats import rankdata


def ranks_of(scores: Sequence[float]) -> list[int]:
    """Ranks by falling score; equal scores tie."""
    return rankdata(-np.asarray(scores), method="dense").tolist()


class LabRater:
    """The noisy rater of the lab: between any two answers it prefers by rlhf.lab.corpus.rater_prefers.

    Its ranking is one of Plackett and Luce: gold scores over the rater's temperature, with Gumbel noise, are sorted
    (Yellott 1977). Answers of the same gold score share their noise, and tie. The noise belongs to the seed, the item
    and how often the item was ranked before. Raises ValueError for a prompt that is no question of the lab world.
    """

    def __init__(self, seed: int = 0):
        self.name, self.seed, self._before = f"lab-{seed}", seed, Counter()

    def rank(self, item: Item) -> list[int]:
        gold = [gold_score(item.prompt, answer.text) for answer in item.answers]
        rng = np.random.default_rng([self.seed, int(item.key, 16), self._before[item.key]])
        self._before[item.key] += 1
        noise = {level: rng.gumbel() for level in dict.fromkeys(gold)}
        return ranks_of([level / RATER_TEMPERATURE + noise[level] for level in gold])


class RewardRater:
    """A reward model: it ranks by its scores and never doubts."""

    def __init__(self, model, tokenizer, name: str = "reward-model"):
        self.model, self.tokenizer, self.name = model, tokenizer, name

    def scores(self, item: Item) -> np.ndarray:
        """(answers,), in logits."""
        texts, ended = [answer.text for answer in item.answers], [answer.ended for answer in item.answers]
        return score(self.model, self.tokenizer, [item.prompt] * len(texts), texts, ended)

    def rank(self, item: Item) -> list[int]:
        return ranks_of(self.scores(item))
