"""Solutions to the exercises of 02_reward_modeling: python exercises/stage_2.py, after a run of its notebooks."""

from functools import cache
from itertools import combinations

from rlhf import metrics, models, outputs
from rlhf.collect import agreement
from rlhf.collect.items import load
from rlhf.collect.journal import journals_in
from rlhf.data import error_kinds, load_preferences
from rlhf.lab import gold_agreement, gold_score, gold_table
from rlhf.lab.corpus import RATER_TEMPERATURE
from rlhf.profiles import load_profile, set_up
from rlhf.reward.pairs import load_pairs
from rlhf.reward.scoring import score_pairs

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.sparse import vstack
from scipy.special import expit, log_expit
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

NO_GOLD = "left out: only the lab profile knows the gold score"


@cache
def preferences(profile):
    return load_preferences(profile)


@cache
def scored(profile, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The reward model's scores of the chosen and of the rejected answers of a split."""
    tokenizer = models.load_tokenizer(profile)
    return score_pairs(models.load_reward_model(profile), tokenizer, load_pairs(profile, tokenizer)[split])


def rater_ceiling(profile):
    """From the gold scores of the test pairs and the rater's temperature, predict how often the rater prefers the
    better answer. Compare it with the measured agreement, and predict it for a rater of twice the temperature.

    The rater picks the better of two answers with probability sigmoid(|difference| / temperature); the ceiling is the
    mean of that. It is lower for a rater of higher temperature, and lower where more pairs are about equally good.
    """
    if not profile.lab:
        return print(NO_GOLD)
    rows = preferences(profile)["test"]
    chosen, rejected = (gold_table(profile, rows["prompt"], rows[side]).gold for side in ("chosen", "rejected"))
    gaps = (chosen - rejected).abs()
    p, twice = expit(gaps / RATER_TEMPERATURE), expit(gaps / RATER_TEMPERATURE / 2)
    measured, error = gold_agreement(profile, rows).mean(), np.sqrt((p * (1 - p)).sum()) / len(p)
    print(f"predicted {p.mean():.3f} with a standard error of {error:.3f}, measured {measured:.3f}")
    print(f"predicted for twice the temperature: {twice.mean():.3f}")
    return p.mean(), error, measured, twice.mean()


def length_by_error_type(profile):
    """How much would length give away to a judge that knew the type of error? For each type, learn on the training
    pairs whether the longer or the shorter answer is chosen more often, and use that on the test pairs.

    The gain over one rule for all types is what a model can win by length once it tells the types apart. The direction
    must not be learned on the test pairs: the better of two rules is at least 0.5 where it was chosen, by luck too.
    """
    rules = {}
    for split in ("train", "test"):
        rows = preferences(profile)[split]
        rule = metrics.length_rule(rows["chosen"], rows["rejected"])
        rules[split] = pd.DataFrame({"error": error_kinds(profile, rows), "longer": rule})
    longer = rules["train"].groupby("error").longer.mean() >= 0.5
    follow = rules["test"].error.map(longer).fillna(True)
    by_type = np.where(follow, rules["test"].longer, 1 - rules["test"].longer).mean()
    print(f"longer is better: {rules['test'].longer.mean():.3f}; a direction for each type of error: {by_type:.3f}")
    return rules["test"].longer.mean(), by_type


def words_alone(profile):
    """How far does a judge get that never reads the prompt? Fit a logistic regression, without intercept, on the counts
    of words and pairs of words in the chosen answer minus those in the rejected one.

    It can see what has words of its own, such as an evasive answer. Whether an answer fits its prompt is in neither
    text alone: pairs that differ in nothing else are left to chance.
    """
    train, test = (preferences(profile)[split] for split in ("train", "test"))
    counts = CountVectorizer(ngram_range=(1, 2), min_df=5).fit(train["chosen"])
    x, new = (counts.transform(rows["chosen"]) - counts.transform(rows["rejected"]) for rows in (train, test))
    judge = LogisticRegression(fit_intercept=False, C=0.1, max_iter=1000)
    judge.fit(vstack([x, -x]), np.repeat([1, 0], x.shape[0]))
    right = metrics.wins(judge.decision_function(new), np.zeros(new.shape[0]))
    print("accuracy {:.3f} [{:.3f}, {:.3f}]".format(*metrics.bootstrap_interval(right)))
    return right.mean()


def fitted_temperature(margins: np.ndarray) -> float:
    """The T for which sigmoid(margin / T) gives the labels the highest likelihood."""
    return float(np.exp(minimize_scalar(lambda t: -log_expit(margins / np.exp(t)).mean(), bounds=(-5, 5)).x))


def calibrate(profile):
    """Fit one temperature T for sigmoid(margin / T) on the validation pairs. What does it do to accuracy and
    calibration error on the test pairs?

    Dividing by a positive number changes no sign, so the accuracy stays. T above 1 says that the model was too sure of
    itself, T below 1 that it was not sure enough. The error on the test pairs falls if both splits agree on that.
    """
    temperature = fitted_temperature(np.subtract(*scored(profile, "validation")))
    margins, found = np.subtract(*scored(profile, "test")), []
    for t in (1.0, temperature):
        error = metrics.expected_calibration_error(metrics.calibration(margins / t))
        found.append((metrics.wins(margins / t, np.zeros(len(margins))).mean(), error))
        print("T = {:.2f}: accuracy {:.3f}, calibration error {:.3f}".format(t, *found[-1]))
    return found


def accuracy_without_noise(profile):
    """Some labels are wrong. From the accuracy on the rater's labels and the share of wrong ones, compute how often the
    reward model would agree with the truth, and compare it with its agreement with gold.

    If its mistakes have nothing to do with the rater's, accuracy = a (1 - e) + (1 - a) e; solve for a. A measured
    agreement below it would say that both stumble over the same pairs, such as answers that are about equally good.
    """
    if not profile.lab:
        return print(NO_GOLD)
    right = metrics.wins(*scored(profile, "test"))
    rater = gold_agreement(profile, preferences(profile)["test"])
    wrong, accuracy = 1 - rater.mean(), right.mean()
    computed, measured = (accuracy - wrong) / (1 - 2 * wrong), (right * rater + (1 - right) * (1 - rater)).mean()
    print(f"agrees with the rater {accuracy:.3f}, with gold: computed {computed:.3f}, measured {measured:.3f}")
    return computed, measured


def collected(profile):
    """The items that notebook 2.3 sampled, and the journals of its raters by their names."""
    folder = outputs.collect_dir(profile) / "notebook"
    items = load(folder / "items.jsonl")
    return items, journals_in(folder / "raters", items)


def raters_agreement(profile):
    """From the gold scores of the collected answers, predict how often the two noisy raters say the same of a pair, and
    compare that with how often they do.

    With p the probability that a rater prefers the first answer, both prefer the same one with p^2 + (1 - p)^2. Answers
    of equal gold score are a tie for both.
    """
    if not profile.lab:
        return print(NO_GOLD)
    items, journals = collected(profile)
    gold = {item.key: [gold_score(item.prompt, answer.text) for answer in item.answers] for item in items}
    gaps = np.array([b - a for item in items for a, b in combinations(gold[item.key], 2)])
    p = expit(gaps / RATER_TEMPERATURE)
    predicted = np.where(gaps == 0, 1, p**2 + (1 - p) ** 2).mean()
    ranks = {name: journal.ranks() for name, journal in journals.items() if name.startswith("lab-")}
    measured, low, high, _ = agreement.with_interval(agreement.agreed, *agreement.pair_labels(items, ranks))
    print(f"predicted {predicted:.3f}, measured {measured:.3f} [{low:.3f}, {high:.3f}]")
    return predicted, measured, low, high


def rank_by_place(profile):
    """Does a rater favour the answer that is shown first? For each rater, the mean rank of the answers shown at each
    place, over items with the same number of answers.

    A machine that scores each answer alone can't see the place, so the means differ by chance only. For a person they
    may not; that is why every rater and every showing has an order of its own, and why the pairs say the places.
    """
    items, journals = collected(profile)
    most = max(len(item.answers) for item in items)
    means = {}
    for name, journal in journals.items():
        full = [rating for rating in journal.said if rating.ranks and len(rating.order) == most]
        means[name] = np.mean([[rating.ranks[answer] for answer in rating.order] for rating in full], axis=0)
        print(name, means[name].round(2))
    return means


SOLUTIONS = (
    rater_ceiling,
    length_by_error_type,
    words_alone,
    calibrate,
    accuracy_without_noise,
    raters_agreement,
    rank_by_place,
)

if __name__ == "__main__":
    set_up(run := load_profile())
    for solution in SOLUTIONS:
        print("", solution.__name__, sep="\n")
        solution(run)
