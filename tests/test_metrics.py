"""Metrics against known answers: by hand, by the library underneath, or by simulation."""

import itertools
import math

from rlhf import metrics
from rlhf.metrics import (
    bootstrap_interval,
    calibration,
    distinct_n,
    expected_calibration_error,
    length_rule,
    paired_difference,
    paired_rows,
    rouge_per_example,
    sliced,
    summary_rows,
    wins,
)

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from rouge_score import rouge_scorer

PREDICTIONS = ["the cat sat on the mat", "Roasting vegetables, slowly!", "nothing in common", "", "日本 a b"]
REFERENCES = ["the cat lay on the mat", "roast the vegetable slowly", "quite another thing", "a reference", "a b c"]


def rouge(prediction, reference):
    return {name: value for name, (value,) in rouge_per_example([prediction], [reference]).items()}


def test_rouge_of_a_pair_as_counted_by_hand():
    # Unigrams: 5 of 6 in common. Bigrams: "the cat", "on the", "the mat" of 5. Longest common subsequence: 5 of 6.
    got = rouge("the cat sat on the mat", "the cat lay on the mat")
    assert got == pytest.approx({"rouge1": 5 / 6, "rouge2": 3 / 5, "rougeL": 5 / 6})
    # Precision 2/2, recall 2/4, F 2/3; no bigram in common; the order is kept.
    assert rouge("a c", "a b c d") == pytest.approx({"rouge1": 2 / 3, "rouge2": 0, "rougeL": 2 / 3})


def test_rouge_l_sees_the_order_and_rouge_1_does_not():
    got = rouge("c b a", "a b c")
    assert (got["rouge1"], got["rougeL"]) == pytest.approx((1, 1 / 3))


def test_rouge_compares_stems_and_ignores_case_and_punctuation():
    assert rouge("Roasting vegetables!", "roasted vegetable")["rouge2"] == 1


def test_rouge_of_each_prediction_is_that_of_the_library_for_the_pair_alone():
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    got = rouge_per_example(PREDICTIONS, REFERENCES)
    assert list(got) == ["rouge1", "rouge2", "rougeL"]
    for name, values in got.items():
        direct = [scorer.score(r, p)[name].fmeasure for p, r in zip(PREDICTIONS, REFERENCES, strict=True)]
        assert values.tolist() == direct


@pytest.mark.parametrize(("predictions", "references"), [([], []), (["a"], []), (["a", "b"], ["a"])])
def test_rouge_of_empty_or_unequal_lists_is_refused(predictions, references):
    with pytest.raises(ValueError, match=f"{len(predictions)} predictions and {len(references)} references"):
        rouge_per_example(predictions, references)


def test_rouge_works_without_a_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a network was asked for")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    assert rouge("the cat sat on the mat", "the cat lay on the mat")["rouge2"] == pytest.approx(0.6)


@pytest.mark.parametrize("values", [[0.25], [3.0] * 50, [-1, -1]])
def test_interval_of_constants_is_the_constant(values):
    assert bootstrap_interval(values) == (values[0],) * 3


def test_interval_holds_the_mean_and_narrows_with_more_values():
    values = np.random.default_rng(0).normal(size=400)
    mean, low, high = bootstrap_interval(values)
    assert mean == pytest.approx(values.mean()) and low < mean < high
    # The normal approximation is good at this size: 1.96 standard errors on each side.
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)
    _, low_few, high_few = bootstrap_interval(values[:100])
    assert high_few - low_few > 1.5 * (high - low)


def test_interval_is_the_same_in_every_call_whatever_the_global_generator_holds():
    values = np.random.default_rng(0).normal(size=30)
    first = bootstrap_interval(values)
    np.random.random(3)
    assert bootstrap_interval(list(values)) == first


def test_interval_of_the_committed_results_does_not_move():
    # To the last bit, or the committed CSVs would change with it; scipy.stats.bootstrap differs in the last digits.
    interval = bootstrap_interval([0.1, 0.9, 0.4, 0.35, 0.8])
    draws = np.random.default_rng(0).integers(5, size=(2_000, 5))
    means = np.array([0.1, 0.9, 0.4, 0.35, 0.8])[draws].mean(axis=1)
    assert interval[1:] == tuple(np.quantile(means, [(1 - 0.95) / 2, (1 + 0.95) / 2]))


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    trials = 400
    intervals = [bootstrap_interval(rng.normal(2, 1, size=60)) for _ in range(trials)]
    covered = np.mean([low <= 2 <= high for _, low, high in intervals])
    assert abs(covered - 0.95) < 3 * math.sqrt(0.95 * 0.05 / trials) + 0.01


@pytest.mark.parametrize("values", [[], 3.0, [[1.0, 2.0]]])
def test_interval_needs_one_number_per_prompt(values):
    with pytest.raises(ValueError, match="no bootstrap interval"):
        bootstrap_interval(values)


def test_paired_difference_takes_out_the_spread_between_prompts():
    baseline = np.random.default_rng(0).normal(0, 100, size=50)
    assert paired_difference(baseline + 0.5, baseline) == pytest.approx((0.5, 0.5, 0.5))
    assert paired_difference(baseline, baseline + 0.5) == pytest.approx((-0.5, -0.5, -0.5))


def test_paired_difference_is_the_interval_of_the_differences():
    values, baseline = np.random.default_rng(1).normal(size=(2, 40))
    assert paired_difference(values, baseline) == bootstrap_interval(values - baseline)
    assert paired_difference(list(values), list(baseline))[0] == pytest.approx(values.mean() - baseline.mean())


def test_paired_difference_of_unequal_lists_is_refused():
    with pytest.raises(ValueError, match="2 values against 3"):
        paired_difference([1, 2], [1, 2, 3])


def test_a_tie_is_half_a_win():
    assert wins([2, 1, 3.5], [1, 2, 3.5]).tolist() == [1, 0, 0.5]
    assert wins([1, 5], [1, 1]).mean() == 0.75


def test_summary_has_one_row_per_metric_in_the_promised_columns():
    table = summary_rows("ppo", {"reward": [1.0, 1.0], "gold": [0.0, 2.0, 4.0]})
    assert list(table.columns) == ["model", "metric", "mean", "ci_low", "ci_high", "n"]
    assert table.iloc[0].tolist() == ["ppo", "reward", 1.0, 1.0, 1.0, 2]
    assert table.iloc[1].tolist() == ["ppo", "gold", *bootstrap_interval([0.0, 2.0, 4.0]), 3]


def test_paired_rows_compare_every_other_model_to_the_one_that_is_named():
    table = paired_rows({"gold": {"sft": [1.0, 5.0], "ppo": [2.0, 6.0], "base": [1.0, 4.0]}}, against="sft")
    assert list(table.columns) == ["model", "against", "metric", "difference", "ci_low", "ci_high", "n"]
    assert table.iloc[0].tolist() == ["ppo", "sft", "gold", 1.0, 1.0, 1.0, 2]
    assert table.iloc[1, :4].tolist() == ["base", "sft", "gold", -0.5]
    assert len(table) == 2


def test_sliced_means_are_those_of_the_members_of_each_group():
    groups = pd.DataFrame({"kind": ["a", "b", "a"], "longer": [True, True, False]}, index=[7, 8, 9])
    table = sliced([1.0, 0.0, 0.0], groups)
    assert list(table.columns) == ["by", "slice", "mean", "ci_low", "ci_high", "n"]
    rows = {(by, name): (mean, n) for by, name, mean, _, _, n in table.itertuples(index=False)}
    assert rows == {
        ("kind", "a"): (0.5, 2),
        ("kind", "b"): (0.0, 1),
        ("longer", False): (0.0, 1),
        ("longer", True): (0.5, 2),
    }


def test_length_rule_picks_the_answer_with_more_words():
    chosen = ["one two three", "one", "one two", "a  b\nc"]
    rejected = ["one two", "one two", "anotherword anotherword", "a b c d"]
    assert length_rule(chosen, rejected).tolist() == [1, 0, 0.5, 0]


def test_distinct_n_as_counted_by_hand():
    texts = ["the cat the cat", "The dog"]
    assert distinct_n(texts, 1) == 3 / 6  # the, cat, dog
    assert distinct_n(texts, 2) == 3 / 4  # the cat, cat the, the dog; "the cat" stands twice
    assert distinct_n(texts, 4) == 1
    assert distinct_n(["a b", "c d"], 2) == 1  # no bigram runs from one text into the next


def test_distinct_n_without_any_n_gram_is_zero():
    assert [distinct_n([], 1), distinct_n(["", " "], 1), distinct_n(["one two"], 3)] == [0, 0, 0]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_calibration_as_computed_by_hand():
    table = calibration([2.0, 2.0, -2.0, 0.1])
    assert list(table.columns) == ["confidence", "accuracy", "ci_low", "ci_high", "n"]
    assert table.confidence.tolist() == pytest.approx([sigmoid(0.1), sigmoid(2)])  # 0.52 and 0.88
    assert table.accuracy.tolist() == pytest.approx([1, 2 / 3])
    assert table.n.tolist() == [1, 3]
    error = (1 * (1 - sigmoid(0.1)) + 3 * (sigmoid(2) - 2 / 3)) / 4
    assert expected_calibration_error(table) == pytest.approx(error)


def test_calibration_puts_each_confidence_into_its_bin_and_counts_every_pair_once():
    margins = np.random.default_rng(0).normal(0, 3, size=500)
    table = calibration(margins, bins=5)
    edges = np.linspace(0.5, 1, 6)
    confidence = 1 / (1 + np.exp(-np.abs(margins)))
    assert table.n.tolist() == np.histogram(confidence, edges)[0].tolist()
    assert (table.n * table.accuracy).sum() == (margins > 0).sum()


def test_calibration_of_ties_and_of_certainty():
    table = calibration([0.0, 0.0, 1000.0, -1000.0])
    assert table.confidence.tolist() == [0.5, 1.0]
    assert table.accuracy.tolist() == [0.5, 0.5]
    assert expected_calibration_error(table) == pytest.approx(0.25)


def test_calibration_error_is_small_where_labels_follow_the_sigmoid_and_large_where_margins_are_too_wide():
    rng = np.random.default_rng(0)
    gaps = rng.normal(0, 2, size=5_000)
    margins = np.where(rng.random(len(gaps)) < 1 / (1 + np.exp(-gaps)), gaps, -gaps)
    assert expected_calibration_error(calibration(margins)) < 0.03
    assert expected_calibration_error(calibration(5 * margins)) > 0.1


def test_rank_correlation_is_scipys_and_knows_only_the_order():
    random = np.random.default_rng(0)
    values = random.normal(size=60)
    noisy = values + random.normal(size=60)
    correlation, low, high = metrics.rank_correlation(values, noisy)
    assert correlation == pytest.approx(scipy.stats.spearmanr(values, noisy).statistic)
    assert low < correlation < high
    assert metrics.rank_correlation(np.exp(values), noisy)[0] == pytest.approx(correlation)
    assert metrics.rank_correlation(values, -values) == pytest.approx((-1, -1, -1))


@pytest.mark.parametrize(("values", "others"), [([1, 2], [1, 2]), ([1, 2, 3], [1, 2])])
def test_rank_correlation_needs_pairs(values, others):
    with pytest.raises(ValueError, match="three pairs"):
        metrics.rank_correlation(values, others)


def test_a_constant_has_no_rank_correlation():
    assert np.isnan(metrics.rank_correlation([1, 2, 3], [5, 5, 5])).all()


@pytest.mark.parametrize(("n", "kl"), [(1, 0.0), (2, math.log(2) - 0.5), (64, math.log(64) - 63 / 64)])
def test_kl_of_the_best_of_n(n, kl):
    assert metrics.best_of_n_kl(n) == pytest.approx(kl)


def test_kl_of_the_best_of_n_is_exact_for_answers_that_never_repeat_and_a_bound_for_those_that_do():
    # Of m equally likely answers in order of score, answer i is the best of n with probability (i/m)^n - ((i-1)/m)^n.
    for m, exact in ((10_000, True), (3, False)):
        edges = np.arange(m + 1) / m
        chosen = np.diff(edges**8)
        kl = (chosen * np.log(chosen * m)).sum()
        assert kl <= metrics.best_of_n_kl(8) + 1e-9
        assert (abs(kl - metrics.best_of_n_kl(8)) < 1e-3) == exact


@pytest.mark.parametrize("n", [0, -3])
def test_best_of_none_is_refused(n):
    with pytest.raises(ValueError, match="at least 1"):
        metrics.best_of_n_kl(n)


def test_best_of_n_is_the_mean_over_all_choices():
    random = np.random.default_rng(1)
    scores, values = random.normal(size=(3, 6)), random.normal(size=(3, 6))
    for n in range(1, 7):
        choices = list(itertools.combinations(range(6), n))
        by_hand = [
            np.mean([v[max(c, key=lambda i: s[i])] for c in choices]) for s, v in zip(scores, values, strict=True)
        ]
        assert metrics.best_of_n(scores, values, n) == pytest.approx(by_hand)


def test_best_of_one_is_the_mean_and_best_of_all_the_highest():
    scores = np.array([[0.1, 0.9, 0.5, 0.4]])
    assert metrics.best_of_n(scores, scores, 1) == pytest.approx([scores.mean()])
    assert metrics.best_of_n(scores, np.array([[1.0, 7.0, 2.0, 3.0]]), 4) == pytest.approx([7.0])


@pytest.mark.parametrize("n", [0, 5])
def test_best_of_more_answers_than_there_are_is_refused(n):
    with pytest.raises(ValueError, match="from 1 to 4"):
        metrics.best_of_n(np.zeros((2, 4)), np.zeros((2, 4)), n)


def test_over_optimisation_is_found_where_gold_turns_and_the_proxy_goes_on():
    noise = np.random.default_rng(2).normal(scale=0.1, size=(2, 5, 100))
    proxy = np.array([0.0, 1.0, 2.0, 3.0, 2.5])[:, None] + noise[0]
    gold = np.array([0.0, 1.0, 0.8, 0.2, 0.0])[:, None] + noise[1]
    found = metrics.over_optimisation(proxy, gold)
    assert (found.peak, found.end, found.found) == (1, 3, True)
    assert found.proxy[0] == pytest.approx(2, abs=0.05) and found.truth[0] == pytest.approx(-0.8, abs=0.05)


def test_over_optimisation_is_not_claimed_where_both_rise_or_only_noise_differs():
    noise = np.random.default_rng(3).normal(size=(2, 8, 100))
    rising = np.arange(8.0)[:, None]
    both = metrics.over_optimisation(rising + noise[0], rising + noise[1])
    assert (both.peak, both.end, both.found) == (7, 7, False)
    claims = [
        metrics.over_optimisation(rising + noise[0], np.random.default_rng(i).normal(size=(8, 100))).found
        for i in range(200)
    ]  # gold is flat: a fall is claimed as rarely as one side of a 95 % interval says
    assert np.mean(claims) < 0.06


def test_over_optimisation_refuses_curves_of_other_prompts():
    with pytest.raises(ValueError, match="same points"):
        metrics.over_optimisation(np.zeros((3, 10)), np.zeros((3, 8)))


def test_gap_closed_is_the_share_of_the_way_from_baseline_to_target():
    values, baseline, target = np.array([2.0, 3.0, 4.0]), np.array([1.0, 2.0, 3.0]), np.array([5.0, 6.0, 7.0])
    assert metrics.gap_closed(values, baseline, target) == pytest.approx((0.25, 0.25, 0.25))
    assert metrics.gap_closed(baseline, baseline, target)[0] == 0
    share, low, high = metrics.gap_closed([2, 1, 6, 0], [1, 2, 3, 0], [3, 4, 5, 4])
    assert share == pytest.approx(3 / 10) and low < share < high


def test_gap_needs_a_way_and_equally_many_numbers():
    with pytest.raises(ValueError, match="no gap to close"):
        metrics.gap_closed([1, 2], [3, 4], [4, 3])
    with pytest.raises(ValueError, match="2, 2 and 1 numbers"):
        metrics.gap_closed([1, 2], [3, 4], [4])


@pytest.mark.parametrize(
    ("reference", "part"),
    [
        ("Разогрейте духовку до двухсот градусов", "Разогрейте духовку"),
        ("烤箱预热到两百度", "烤箱预热"),
        ("ओवन को गरम करें", "ओवन को"),
        ("Ζεστάνετε τον φούρνο", "ζεστάνετε τον"),
    ],
)
def test_rouge_of_a_text_in_another_script_is_not_silently_zero(reference, part):
    with pytest.warns(UserWarning, match="none of a-z"):
        equal, half, none = rouge_per_example([reference, part, "xyz"], [reference] * 3)["rouge1"]
    assert equal == 1.0 and 0.4 < half < 1.0 and none == 0.0


def test_references_that_can_only_score_zero_are_counted():
    texts = ["Heat the oven to two hundred degrees", "烤箱预热", "Let it rest for a long while", "..."]
    with pytest.warns(UserWarning, match="2 of 4 references have no word of a-z or digits"):
        scores = rouge_per_example(texts, texts)["rouge1"]
    assert scores.tolist() == [1, 0, 1, 0]


def test_accents_and_a_few_foreign_words_leave_rouge_as_published(recwarn):
    texts = ["Heat the crème brûlée for a minute", "Das Backen der Brötchen (Ελλάδα)"]
    scorer = rouge_scorer.RougeScorer(["rouge1"], use_stemmer=True)
    expected = [scorer.score(text, texts[0])["rouge1"].fmeasure for text in texts]
    assert rouge_per_example([texts[0]] * 2, texts)["rouge1"].tolist() == expected
    assert not recwarn.list
