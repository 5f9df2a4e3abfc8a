"""Preferences collected anew: items, raters, journals that a kill leaves whole, pairs that load, and agreement."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from unittest.mock import Mock

from rlhf import models, outputs
from rlhf.collect import agreement
from rlhf.collect.items import Candidate, Item, load, revision, sample_items, save
from rlhf.collect.journal import Journal, queue_of, rater_name
from rlhf.collect.pairs import collect, export
from rlhf.collect.raters import LabRater, RewardRater, ranks_of
from rlhf.data import first_sentence, load_preferences
from rlhf.lab.corpus import preference_table, rater_prefers
from rlhf.lab.gold import gold_score
from rlhf.profiles import load_profile
from rlhf.reward.scoring import score

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

NAN = np.nan


def lab_items(count: int, answers: int = 4) -> list[Item]:
    """Questions of the lab with a good answer, one of another kind, and the first sentences of both."""
    items = []
    for prompt, *both in preference_table("train", count, 0)[["prompt", "chosen", "rejected"]].itertuples(index=False):
        texts = [*both, *(f"{first_sentence(text)} And {i}." for i, text in enumerate(both))]
        decodings = ({"temperature": 1.0, "seed": seed, "max_new_tokens": 96} for seed in range(answers))
        candidates = (Candidate(text, True, decoding) for text, decoding in zip(texts, decodings, strict=False))
        items.append(Item(prompt, tuple(candidates), "sft_full_final@0123456789ab"))
    return items


# Items


def test_answers_differ_carry_their_decoding_and_come_again_from_it(stage, tmp_path):
    profile, tokenizer, prompts = stage
    policy, path = models.load_policy(profile, "sft_full"), outputs.checkpoint_path(profile, "sft_full_final")
    settings = profile, policy, tokenizer, prompts[:6], (0.5, 1.0), 3, revision(path)
    items = sample_items(*settings)
    assert [item.prompt for item in items] == prompts[:6]
    for item in items:
        assert len({answer.text for answer in item.answers}) == len(item.answers) == 3
        assert [answer.decoding["temperature"] for answer in item.answers[:2]] == [0.5, 1.0]
    assert sample_items(*settings) == items and load(save(tmp_path / "items.jsonl", items)) == items
    assert [item.key for item in load(tmp_path / "items.jsonl")] == [item.key for item in items]


def test_answer_that_is_there_already_is_drawn_again_and_one_answer_alone_is_left_out(stage, monkeypatch, capsys):
    profile, tokenizer, _ = stage
    drawn = []

    def generate(policy, tokenizer, prompts, *, seed, **options):
        drawn.append(list(prompts))
        texts = {"same": "always", "few": f"text {seed % 2}", "many": f"text {seed}"}
        return [Candidate(texts[prompt], True, {}) for prompt in prompts]

    monkeypatch.setattr("rlhf.collect.items.generate_answers", generate)
    items = sample_items(profile, None, tokenizer, ["same", "few", "many"], (1.0,), 3, "sft@1")
    assert {item.prompt: len(item.answers) for item in items} == {"few": 2, "many": 3}
    assert drawn == [["same", "few", "many"]] * 3 + [["same", "few"]] * 6
    assert "2 of 3 prompts have fewer than 3 different answers" in capsys.readouterr().out


@pytest.mark.parametrize(("temperatures", "count"), [((1.0,), 1), ((1.0,), 9), ((), 4), ((1.0, 0.0), 4)])
def test_settings_that_give_nothing_to_rank_are_refused(stage, temperatures, count):
    with pytest.raises(ValueError, match=r"give from 2 to 8|all positive"):
        sample_items(stage[0], None, stage[1], ["Why?"], temperatures, count, "sft@1")


def test_revision_changes_with_the_weights_and_needs_a_manifest(profile_with_sft):
    path = outputs.checkpoint_path(profile_with_sft, "sft_full_final")
    before = revision(path)
    assert before == revision(path) and before.startswith("sft_full_final@")
    (path / "more.txt").write_text("another file")
    outputs.write_manifest(path)
    assert revision(path) != before
    (path / outputs.MANIFEST).unlink()
    with pytest.raises(ValueError, match=r"rlhf_manifest\.json is missing"):
        revision(path)


# Raters


def test_noisy_rater_prefers_as_often_as_the_labs_and_ties_equal_gold(monkeypatch):
    gold = [1.0, 1.2, 0.6, 1.0]
    item = Item("Why?", tuple(Candidate(str(number), True, {"seed": i}) for i, number in enumerate(gold)), "sft@1")
    monkeypatch.setattr("rlhf.collect.raters.gold_score", lambda prompt, text: float(text))
    rater = LabRater(0)
    ranks = np.array([rater.rank(item) for _ in range(4000)])
    assert (ranks[:, 0] == ranks[:, 3]).all() and set(ranks.max(axis=1)) == {3}
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert (ranks[:, i] < ranks[:, j]).mean() == pytest.approx(rater_prefers(gold[i], gold[j]), abs=0.03)


def test_noise_belongs_to_seed_item_and_showing():
    first, second = lab_items(2)
    rater, other = LabRater(3), LabRater(3)
    said = [rater.rank(first), rater.rank(second), rater.rank(first)]
    assert said[1] == other.rank(second) and said[0] == other.rank(first) and said[2] == other.rank(first)


def test_reward_model_ranks_by_its_scores_as_the_evaluation_gives_them(tokenizer, reward_model):
    item = lab_items(1, answers=2)[0]
    item = item._replace(answers=tuple(Candidate(text, end, {}) for text, end in (("one", True), ("two", False))))
    first, second = score(reward_model, tokenizer, [item.prompt] * 2, ["one", "two"], [True, False])
    assert RewardRater(reward_model, tokenizer).rank(item) == ([1, 2] if first > second else [2, 1])


# Journals


@pytest.mark.parametrize(
    "name", ["", "..", "a/b", "a\\b", "*", "[a]", ".hidden", "-x", "x" * 33, "ä", "a\nb", "a b", "a\0"]
)
def test_name_that_could_be_a_path_or_pattern_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match="is no name of a rater; give 1 to 32"):
        Journal(tmp_path / "raters", name, lab_items(2))
    assert not list(tmp_path.iterdir()) and rater_name(" Anna_2 ") == "anna_2"


def test_queue_has_every_item_once_and_a_tenth_again_much_later():
    items = lab_items(30, answers=2)
    queue = [item.key for item in queue_of(items, "anna")]
    assert Counter(Counter(queue).values()) == {1: 27, 2: 3} and set(queue) == {item.key for item in items}
    places = [[i for i, key in enumerate(queue) if key == again] for again, n in Counter(queue).items() if n == 2]
    assert all(second - first > 10 for first, second in places)
    assert queue == [item.key for item in queue_of(items, "anna")] != [item.key for item in queue_of(items, "ben")]


def test_answers_are_shown_in_an_order_of_rater_and_place(tmp_path):
    items = lab_items(30)
    anna, ben = (Journal(tmp_path, name, items) for name in ("anna", "ben"))
    orders = [tuple(anna.order(place)) for place in range(33)]
    assert len(set(orders)) > 10 and all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert orders == [tuple(Journal(tmp_path, "anna", items).order(place)) for place in range(33)]
    assert orders != [tuple(ben.order(place)) for place in range(33)]


def test_undo_is_an_entry_and_the_item_comes_again(tmp_path):
    items = lab_items(3)
    journal = Journal(tmp_path, "anna", items)
    journal.undo()  # nothing to take back
    journal.add([1, 2, 3, 4])
    journal.add(None)
    journal.undo()
    journal.add([2, 1, 1, 3])
    first, second = journal.queue[:2]
    assert [journal.rank(item) for item in journal.queue] == [[1, 2, 3, 4], [2, 1, 1, 3], None]
    entries = [json.loads(line) for line in journal.path.read_text().splitlines()]
    assert [entry["item"] for entry in entries if "undo" not in entry] == [first.key, second.key, second.key]
    assert [entry["undo"] for entry in entries if "undo" in entry] == [second.key]
    assert Journal(tmp_path, "anna", items).said == journal.said


@pytest.mark.parametrize("ranks", [[1, 2, 3], [0, 1, 2, 3], [1, 1, 3, 4], [1, 2, 3, 4, 5]])
def test_ranks_that_are_none_of_the_item_are_refused_and_not_written(tmp_path, ranks):
    journal = Journal(tmp_path, "anna", lab_items(3))
    with pytest.raises(ValueError, match="expected"):
        journal.add(ranks)
    assert journal.place == 0 and not journal.path.exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from rlhf.collect.items import load
from rlhf.collect.journal import Journal
folder = Path(sys.argv[1])
journal = Journal(folder, "anna", load(folder / "items.jsonl"))
journal.add([1, 2, 3, 4])
journal.add([4, 3, 2, 1])
os.write(os.open(journal.path, os.O_WRONLY | os.O_APPEND), b'{"time": "2026-11')
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_rater_goes_on_where_they_stopped_and_half_a_line_is_dropped(tmp_path):
    items = lab_items(5)
    save(tmp_path / "items.jsonl", items)
    environment = os.environ | {"PYTHONPATH": str(outputs.ROOT)}
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path], env=environment)
    assert done.returncode == -signal.SIGKILL
    journal = Journal(tmp_path, "anna", items)
    assert [rating.ranks for rating in journal.said] == [[1, 2, 3, 4], [4, 3, 2, 1]]
    journal.add([1, 1, 1, 1])
    assert [rating.ranks for rating in Journal(tmp_path, "anna", items).said] == [[1, 2, 3, 4], [4, 3, 2, 1], [1] * 4]


def test_rating_that_the_disk_has_no_room_for_does_not_count(tmp_path, monkeypatch):
    items = lab_items(4)
    journal = Journal(tmp_path, "anna", items)
    journal.add([1, 2, 3, 4])
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr("os.fsync", Mock(side_effect=OSError("no space")))
        journal.add([4, 3, 2, 1])
    assert journal.place == 1
    journal.add(None)
    assert [rating.ranks for rating in Journal(tmp_path, "anna", items).said] == [[1, 2, 3, 4], None]


@pytest.mark.parametrize("line", ["{", "[]", '{"item": "x"}', '{"undo": "x"}', "other items"])
def test_journal_that_is_not_of_these_items_is_refused_by_line_and_kept(tmp_path, line):
    items = lab_items(6)
    if line == "other items":
        Journal(tmp_path, "anna", lab_items(9)[6:]).add([1, 2, 3, 4])
    else:
        (tmp_path / "anna.jsonl").write_text(line + "\n")
    before = (tmp_path / "anna.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"journal anna\.jsonl, line 1 fits none of these items"):
        Journal(tmp_path, "anna", items)
    assert (tmp_path / "anna.jsonl").read_bytes() == before


# Pairs


def test_pairs_hold_all_that_made_them_and_ties_lie_apart(tmp_path):
    items = lab_items(1)
    journal = Journal(tmp_path, "anna", items)
    journal.add([2, 1, 2, 3])
    assert export(tmp_path, items, [journal]) == (5, 1)
    pairs, ties = ([json.loads(line) for line in (tmp_path / f"{n}.jsonl").open()] for n in ("pairs", "ties"))
    texts, order = [answer.text for answer in items[0].answers], journal.order(0)
    assert {(row["chosen"], row["rejected"]) for row in pairs} == {
        (texts[i], texts[j]) for i, j in ((1, 0), (1, 2), (1, 3), (0, 3), (2, 3))
    }
    assert [(row["first"], row["second"]) for row in ties] == [(texts[0], texts[2])]
    row = next(row for row in pairs if (row["chosen"], row["rejected"]) == (texts[1], texts[3]))
    assert [row[f"{side}_decoding"]["seed"] for side in ("chosen", "rejected")] == [1, 3]
    assert [row[f"{side}_place"] for side in ("chosen", "rejected")] == [order.index(1) + 1, order.index(3) + 1]
    assert (row["rater"], row["item"], row["model_revision"]) == ("anna", items[0].key, items[0].revision)
    assert row["time"].endswith("+00:00")


def test_pairs_load_as_a_data_set_of_ones_own_and_no_prompt_is_in_two_splits(tmp_path, monkeypatch, capsys):
    items, folder = lab_items(60), tmp_path / "collected"
    (journal,) = collect(folder, items, [LabRater(0)])
    pairs, ties = (len((folder / f"{name}.jsonl").read_text().splitlines()) for name in ("pairs", "ties"))
    assert journal.done and pairs + ties == 60 * 6 and load(folder / "items.jsonl") == items
    monkeypatch.setenv("RLHF_DATASET", str(folder / "pairs.jsonl"))
    splits = load_preferences(load_profile("gpt2"))
    assert sum(len(rows) for rows in splits.values()) == pairs
    prompts = [set(rows["prompt"]) for rows in splits.values()]
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == 60
    assert "of the form: prompt, chosen and rejected as text" in capsys.readouterr().out


def test_second_showings_and_what_was_skipped_are_no_pairs(tmp_path):
    items = lab_items(10)
    journal = Journal(tmp_path, "anna", items)
    while not journal.done:
        journal.add([1, 2, 3, 4] if journal.place else None)
    assert len(journal.queue) == 11 and export(tmp_path, items, [journal]) == (9 * 6, 0)
    skipped = journal.queue[0].key
    assert len(journal.ranks()) == 9 and skipped not in journal.ranks() and len(journal.ranks(again=True)) == 1


# Agreement


# Krippendorff 2011, section C: four observers, twelve units; his alphas are 0.743 and, for an ordinal metric, 0.815.
PUBLISHED = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
)


def test_alpha_is_the_published_one():
    assert agreement.krippendorffs_alpha(PUBLISHED) == pytest.approx(0.743, abs=5e-4)
    assert agreement.krippendorffs_alpha(PUBLISHED, ordinal=True) == pytest.approx(0.815, abs=5e-4)


def test_agreement_at_its_ends():
    same = np.array([[1, -1, 0, 1.0], [1, -1, 0, 1]])
    for statistic in (agreement.agreed, agreement.cohens_kappa, agreement.krippendorffs_alpha):
        assert statistic(same) == 1
        assert np.isnan(statistic(np.full((2, 3), NAN)))
    assert np.isnan(agreement.cohens_kappa(np.ones((2, 3)))) and np.isnan(
        agreement.krippendorffs_alpha(np.ones((2, 3)))
    )


def test_kappa_is_that_of_the_library_on_what_both_rated():
    first, second = [1, 1, -1, 0, 1, NAN], [1, -1, -1, 0, 0, 1]
    expected = cohen_kappa_score(first[:5], second[:5])
    assert agreement.cohens_kappa(np.array([first, second], dtype=float)) == pytest.approx(expected)


def test_labels_of_pairs_follow_the_ranks():
    items = lab_items(2, answers=3)
    ranks = {"anna": {items[0].key: [1, 2, 2], items[1].key: [3, 2, 1]}, "ben": {items[1].key: [1, 1, 1]}}
    labels, numbers = agreement.pair_labels(items, ranks)
    assert labels[0].tolist() == [1, 1, 0, -1, -1, -1] and numbers.tolist() == [0, 0, 0, 1, 1, 1]
    assert np.isnan(labels[1, :3]).all() and labels[1, 3:].tolist() == [0, 0, 0]


def test_interval_draws_items_and_not_pairs():
    labels = np.repeat([[1.0] * 10, [1.0] * 5 + [-1.0] * 5], 6, axis=1)  # all pairs of an item agree, or none
    alone = np.concatenate([labels, [[1.0] * 60, [NAN] * 60]], axis=1)  # what one rater alone ranked
    value, low, high, items = agreement.with_interval(agreement.agreed, alone, np.repeat(np.arange(20), 6))
    assert items == 10 and (value, low, high, 10) == agreement.with_interval(
        agreement.agreed, labels, np.repeat(np.arange(10), 6)
    )
    by_pair = agreement.with_interval(agreement.agreed, labels, np.arange(60))
    assert value == by_pair[0] == 0.5 and (high - low) > 2 * (by_pair[2] - by_pair[1])
    assert low == pytest.approx(0.2, abs=0.11) and high == pytest.approx(0.8, abs=0.11)
    nothing = agreement.with_interval(agreement.agreed, np.empty((2, 0)), np.empty(0))
    assert np.isnan(nothing[:3]).all() and nothing[3] == 0


def test_two_noisy_raters_agree_as_often_as_their_noise_says(tmp_path):
    items = lab_items(200, answers=2)
    ranks = {f"lab-{seed}": {item.key: LabRater(seed).rank(item) for item in items} for seed in (0, 1)}
    gold = [[gold_score(item.prompt, answer.text) for answer in item.answers] for item in items]
    p = np.array([1 / 2 if a == b else rater_prefers(a, b) for a, b in gold])
    expected = np.where([a == b for a, b in gold], 1, p**2 + (1 - p) ** 2)
    labels, numbers = agreement.pair_labels(items, ranks)
    value, low, high, _ = agreement.with_interval(agreement.agreed, labels, numbers)
    assert value == pytest.approx(expected.mean(), abs=4 * np.sqrt((expected * (1 - expected)).mean() / 200))
    assert low < expected.mean() < high


def test_rater_without_noise_agrees_with_itself_on_what_is_shown_again(tmp_path):
    class Gold:
        def rank(self, item):
            return ranks_of([gold_score(item.prompt, answer.text) for answer in item.answers])

    items = lab_items(30)
    journal = Journal(tmp_path, "gold", items)
    journal.ask(Gold())
    other = Journal(tmp_path, "lab-0", items)
    other.ask(LabRater(0))
    table = agreement.compare(items, [journal, other]).set_index(["raters", "measure"])
    assert set(table.index.get_level_values(0)) == {"gold / lab-0", "gold, again", "lab-0, again"}
    again = table.loc["gold, again"]
    assert (again[["value", "ci_low", "ci_high"]] == 1).all(axis=None) and (again["items"] == 3).all()
    assert table.loc[("gold / lab-0", "share"), "items"] == 30 and (table.loc["gold / lab-0"].value < 1).all()
