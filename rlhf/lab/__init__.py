"""The offline world: a corpus of questions and answers, a gold judge that knows the truth, and a small base model."""

from rlhf.lab.gold import WEIGHTS, gold_parts, gold_score

__all__ = ["WEIGHTS", "gold_parts", "gold_score"]
