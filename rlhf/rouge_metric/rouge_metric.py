"""ROUGE as a local module of the `evaluate` library: `evaluate.load("rouge")` would need the Hub."""

import datasets
import evaluate
from rouge_score import rouge_scorer

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")


class Rouge(evaluate.Metric):
    """F-measure of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004) of each prediction, with Porter stemming."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__ or "ROUGE",
            citation="Lin 2004, ROUGE: A Package for Automatic Evaluation of Summaries",
            inputs_description="predictions and references: equally long lists of strings",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references):
        scorer = rouge_scorer.RougeScorer(list(ROUGE_TYPES), use_stemmer=True)
        scores = [scorer.score(reference, text) for text, reference in zip(predictions, references, strict=True)]
        return {name: [score[name].fmeasure for score in scores] for name in ROUGE_TYPES}
