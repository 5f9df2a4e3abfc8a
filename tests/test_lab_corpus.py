"""The lab corpus: repeatable, its splits apart, its rater as noisy as it says, and not solvable by length."""

import hashlib
import itertools
import math
import random
import re
from collections import Counter

from rlhf.lab import WEIGHTS, corpus, gold_parts, gold_score
from rlhf.lab.corpus import ERROR_KINDS, combinations, documents, preference_table
from rlhf.lab.world import POINTS, families, fill, normalise, parse_question, phrases, questions
from rlhf.metrics import length_rule, wins
from rlhf.profiles import load_profile

import numpy as np
import pytest
from conftest import run_python

LAB = load_profile("lab")
SPLITS = ("train", "validation", "test")
HELD_OUT = combinations()["validation"] | combinations()["test"]


@pytest.fixture(scope="module")
def tables():
    """The three splits at the lab profile's own sizes."""
    return {split: preference_table(split, size, LAB.seed) for split, size in zip(SPLITS, LAB.lab.pairs, strict=True)}


@pytest.fixture(scope="module")
def texts():
    return documents(6_000, seed=0)


FINGERPRINT = """
import hashlib
from rlhf.lab.corpus import documents, preference_table
tables = [preference_table(split, 60, 3).to_csv() for split in ("train", "validation", "test")]
print(hashlib.sha256("".join([*tables, *documents(100, 3)]).encode()).hexdigest())
"""


def test_same_seed_gives_the_same_corpus_in_any_process():
    tables = [preference_table(split, 60, 3).to_csv() for split in SPLITS]
    here = hashlib.sha256("".join([*tables, *documents(100, 3)]).encode()).hexdigest()
    for hash_seed in ("1", "2"):
        assert run_python(FINGERPRINT, PYTHONHASHSEED=hash_seed).strip() == here


def test_another_seed_gives_another_corpus_with_the_same_combinations_held_out():
    first, second = preference_table("test", 100, 0), preference_table("test", 100, 1)
    assert set(first.prompt) != set(second.prompt)
    assert documents(50, 0) != documents(50, 1)
    for table in (first, second):
        assert {parse_question(p).combination for p in table.prompt} <= combinations()["test"]


def test_splits_share_no_combination_and_together_hold_all_of_them():
    sets = [combinations()[split] for split in SPLITS]
    everything = {question.combination for question in questions()}
    assert set.union(*map(set, sets)) == everything
    assert sum(map(len, sets)) == len(everything)
    assert len(sets[1]) == round(corpus.HELD_OUT["validation"] * len(everything))
    assert len(sets[2]) == round(corpus.HELD_OUT["test"] * len(everything))


def test_training_sees_every_activity_object_and_kind_of_what_is_held_out():
    train = combinations()["train"]
    for place in range(3):
        assert {c[place] for c in HELD_OUT} <= {c[place] for c in train}
    assert {(c[0], c[2]) for c in HELD_OUT} <= {(c[0], c[2]) for c in train}
    assert max(Counter(c[1:] for c in HELD_OUT).values()) <= 2


def test_pairs_of_a_split_ask_only_for_its_combinations_and_each_question_once(tables):
    for split, table in tables.items():
        asked = [parse_question(prompt) for prompt in table.prompt]
        assert {question.combination for question in asked} <= combinations()[split]
        assert table.prompt.is_unique
        assert len(table) == LAB.lab.pairs[SPLITS.index(split)]


def held_out_spans(text: str) -> list[str]:
    """Questions about held-out combinations, and openings of their answers, that stand in `text`."""
    words = normalise(text).split()
    starts = [i for i, word in enumerate(words) if word in FIRST_WORDS]
    spans = (" ".join(words[i : i + length]) for i in starts for length in LENGTHS if i + length <= len(words))
    return [span for span in spans if span in FORBIDDEN]


def held_out_texts() -> set[str]:
    asked = {normalise(q.text) for q in questions() if q.combination in HELD_OUT}
    openings = {
        normalise(fill(pattern, activity, name))
        for family in families()
        for activity in family.activities
        for name in family.objects
        for kind, patterns in phrases()["openings"].items()
        if (activity.verb, name, kind) in HELD_OUT
        for pattern in patterns
    }
    return asked | openings


FORBIDDEN = held_out_texts()
FIRST_WORDS = {text.split()[0] for text in FORBIDDEN}
LENGTHS = sorted({len(text.split()) for text in FORBIDDEN})


def test_held_out_questions_and_openings_are_found_where_they_stand(tables):
    assert all(held_out_spans(f"Well. {prompt} Yes.") for prompt in tables["test"].prompt)
    assert any(held_out_spans(answer) for answer in tables["test"].chosen)


def test_documents_hold_no_held_out_question_and_no_opening_of_its_answer(texts):
    assert [found for text in texts if (found := held_out_spans(text))] == []


def test_train_pairs_hold_no_held_out_question_and_no_opening_of_its_answer(tables):
    for column in ("prompt", "chosen", "rejected"):
        assert [found for text in tables["train"][column] if (found := held_out_spans(text))] == []


def held_out_plans(text: str) -> list[tuple[str, str, str]]:
    """Held-out how-combinations of which two steps or more stand in `text`."""
    told = Counter(STEPS[step] for step in set(ANY_STEP.findall(text.lower())))
    return [combination for combination, count in told.items() if count > 1]


STEPS = {
    step.format(o=name): (activity.verb, name, "how")
    for family in families()
    for activity in family.activities
    for name in family.objects
    if (activity.verb, name, "how") in HELD_OUT
    for step in activity.steps
    if "{o}" in step
}
ANY_STEP = re.compile("|".join(map(re.escape, STEPS)))


def test_no_document_lays_out_the_plan_of_a_held_out_how_question(texts, tables):
    answers = [a for p, a in zip(tables["test"].prompt, tables["test"].chosen, strict=True) if p.startswith("How")]
    assert any(map(held_out_plans, answers))
    assert [found for text in texts if (found := held_out_plans(text))] == []


def test_documents_are_as_many_as_asked_for_distinct_and_of_every_sort(texts):
    assert len(texts) == 6_000
    assert len(set(texts)) > 0.95 * len(texts)
    assert all(text.strip() for text in texts)
    assert not any("### Instruction" in text for text in texts)  # the template is new to the base model
    assert not any(re.search(r"[{}]", text) for text in texts)


def test_all_kinds_occur_as_often_as_they_should(tables):
    assert len(ERROR_KINDS) == 12 and sum(ERROR_KINDS.values()) == pytest.approx(1)
    table = tables["train"]
    how = np.array([parse_question(prompt).kind == "how" for prompt in table.prompt])
    assert set(table.error[how]) == set(ERROR_KINDS)
    assert set(table.error[~how]) == set(ERROR_KINDS) - {"disordered"}  # only steps have an order to break
    for kind, share in ERROR_KINDS.items():
        standard_error = math.sqrt(share * (1 - share) / how.sum())
        assert abs((table.error[how] == kind).mean() - share) < 4 * standard_error, kind


@pytest.mark.parametrize("split", ["validation", "test"])
def test_all_kinds_occur_in_what_is_held_out(tables, split):
    assert set(tables[split].error) == set(ERROR_KINDS)


def test_length_tells_little_about_the_test_pairs_and_the_gold_judge_nearly_everything(tables):
    test = tables["test"]
    assert length_rule(test.chosen, test.rejected).mean() < 0.60
    assert wins(test.gold_chosen, test.gold_rejected).mean() > 0.93


def test_gold_columns_are_the_scores_of_the_answers_and_never_tie(tables):
    table = tables["test"]
    for side in ("chosen", "rejected"):
        assert [gold_score(p, a) for p, a in zip(table.prompt, table[side], strict=True)] == list(table[f"gold_{side}"])
    assert (table.gold_chosen != table.gold_rejected).all()
    assert ((table.gold_chosen < table.gold_rejected) == table.flipped).all()


def test_rater_prefers_by_the_gap_in_units_of_its_temperature():
    assert corpus.rater_prefers(2.0, 2.0) == 0.5
    ahead = corpus.rater_prefers(1 + math.log(3) * corpus.RATER_TEMPERATURE, 1)
    assert ahead == pytest.approx(0.75)
    assert corpus.rater_prefers(1, 1 + math.log(3) * corpus.RATER_TEMPERATURE) == pytest.approx(1 - ahead)


def test_rater_errs_as_the_sigmoid_of_the_gold_gap_says(tables):
    table = tables["train"]
    gap = (table.gold_chosen - table.gold_rejected).abs()
    expected = 1 / (1 + np.exp(gap / corpus.RATER_TEMPERATURE))
    near, middle, far = gap < 0.5, gap.between(0.5, 1.5), gap > 1.5
    assert min(near.sum(), middle.sum(), far.sum()) > 200
    for part in (near, middle, far, gap > 0):
        standard_error = math.sqrt((expected * (1 - expected))[part].sum())
        assert abs(table.flipped[part].sum() - expected[part].sum()) < 4 * max(standard_error, 0.25)
    # A rater without noise, and one twice as noisy, would be told apart.
    for temperature in (1e-3, 2 * corpus.RATER_TEMPERATURE):
        other = 1 / (1 + np.exp(np.minimum(gap / temperature, 500)))
        standard_error = math.sqrt((other * (1 - other)).sum())
        assert abs(table.flipped.sum() - other.sum()) > 4 * standard_error


@pytest.mark.parametrize("split", SPLITS)
def test_more_pairs_than_questions_are_refused(split):
    most = sum(question.combination in combinations()[split] for question in questions())
    with pytest.raises(ValueError, match=rf"{split} split .* has {most} questions, not {most + 1}"):
        preference_table(split, most + 1, 0)


def test_every_kind_of_bad_answer_can_be_written_for_every_combination():
    rng = random.Random(0)
    asked = {question.combination: question for question in questions()}.values()
    for question in asked:
        for kind in ERROR_KINDS:
            if kind != "disordered" or question.kind == "how":
                answer = corpus.bad_answer(rng, question, kind)
                assert answer.strip() and not re.search(r"[{}]", answer)


def mean_gold(write, asked):
    return np.mean([gold_score(question.text, write(question)) for question in asked])


def test_each_kind_of_bad_answer_scores_lower_than_good_answers():
    rng = random.Random(0)
    asked = rng.sample([question for question in questions() if question.kind == "how"], 200)
    good = mean_gold(lambda q: corpus.good_answer(rng, q), asked)
    for kind in ERROR_KINDS:
        assert mean_gold(lambda q, kind=kind: corpus.bad_answer(rng, q, kind), asked) < good - 0.05, kind


def test_good_answers_are_about_the_question_and_of_mixed_quality():
    rng = random.Random(0)
    scores = []
    for question in rng.sample(questions(), 300):
        answer = corpus.good_answer(rng, question)
        assert question.object in answer.lower()
        scores.append(gold_score(question.text, answer))
    assert min(scores) > 3 and np.std(scores) > 0.3  # PPO needs room to improve on them


def counted(question, answer) -> dict[str, float]:
    """The parts of the gold score in units of their weights."""
    return {part: value / WEIGHTS[part] for part, value in gold_parts(question.text, answer).items()}


def makes_no_point(parts) -> bool:
    return parts["object"] == parts["activity"] == parts["completeness"] == parts["order"] == parts["tip"] == 0


def says_nothing(parts) -> bool:
    return makes_no_point(parts | {"tip": 0}) and parts["filler"] == 4


@pytest.mark.parametrize(
    ("kind", "holds"),
    [
        ("cut_off", lambda q, answer, parts: not answer.endswith((".", "!", "?")) and parts["ended"] == 0),
        ("wrong_object", lambda q, answer, parts: q.object not in answer.lower() and makes_no_point(parts)),
        ("off_topic", lambda q, answer, parts: q.object not in answer.lower() and makes_no_point(parts)),
        ("wrong_action", lambda q, answer, parts: q.object in answer.lower() and makes_no_point(parts)),
        ("repetitive", lambda q, answer, parts: parts["repetition"] >= 1),
        ("rambling", lambda q, answer, parts: says_nothing(parts)),
        ("evasive", lambda q, answer, parts: says_nothing(parts)),
        ("generic", lambda q, answer, parts: says_nothing(parts)),
        ("fewer_steps", lambda q, answer, parts: parts["completeness"] == 1 / POINTS[q.kind][1]),
        ("disordered", lambda q, answer, parts: parts["order"] == 0 and parts["completeness"] >= 1 / 2),
        ("weaker", lambda q, answer, parts: parts["filler"] <= 1 and parts["order"] == 1),
    ],
)
def test_bad_answers_have_the_error_of_their_kind(kind, holds):
    rng = random.Random(0)
    asked = rng.sample([q for q in questions() if kind != "disordered" or q.kind == "how"], 200)
    answers = [(question, corpus.bad_answer(rng, question, kind)) for question in asked]
    assert [answer for q, answer in answers if not holds(q, answer, counted(q, answer))] == []


SAMPLES = 3000


def test_good_answers_have_no_fault_but_what_they_leave_out():
    rng = random.Random(0)
    for question in rng.choices(questions(), k=SAMPLES):
        answer = corpus.good_answer(rng, question)
        parts = counted(question, answer)
        assert [parts[part] for part in ("object", "activity", "order", "ended")] == [1, 1, 1, 1], answer
        assert [parts[part] for part in ("repetition", "filler", "foreign", "garbled")] == [0, 0, 0, 0], answer
        assert parts["completeness"] >= 1 / 2, answer


@pytest.mark.parametrize("kind", [kind for kind in ERROR_KINDS if kind != "cut_off"])
def test_every_sentence_of_every_kind_of_bad_answer_is_whole(kind):
    rng = random.Random(0)
    asked = [question for question in questions() if kind != "disordered" or question.kind == "how"]
    answers = [(question, corpus.bad_answer(rng, question, kind)) for question in rng.choices(asked, k=SAMPLES)]
    assert [answer for q, answer in answers if counted(q, answer)["garbled"] or answer[-1] not in ".?"] == []


def test_an_answer_that_is_cut_off_has_one_garbled_sentence_or_none_where_the_cut_falls_behind_one():
    rng = random.Random(0)
    garbled = Counter(
        counted(question, corpus.bad_answer(rng, question, "cut_off"))["garbled"]
        for question in rng.choices(questions(), k=SAMPLES)
    )
    assert set(garbled) == {0, 1} and garbled[1] > 4 * garbled[0]


def sentences_of(answer: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+", answer)


@pytest.fixture(scope="module")
def answers():
    """Questions and sentences of good answers to them."""
    rng = random.Random(0)
    return [(q, sentences_of(corpus.good_answer(rng, q))) for q in rng.choices(questions(), k=SAMPLES)]


def marker_of(sentence: str) -> str:
    """The longest marker that the sentence begins with."""
    every = itertools.chain(*phrases()["markers"].values())
    return max((marker for marker in every if sentence.startswith(f"{marker} ")), key=len, default="")


def test_markers_stand_at_their_places(answers):
    markers, seen = phrases()["markers"], {"how": set(), "why": set(), "avoid": set()}
    for question, said in answers:
        used = list(filter(None, map(marker_of, said)))
        if question.kind in seen and used:
            places = ["first", "second", "third"][: len(used)]
            if question.kind == "how":
                places = ["begin", *["next"] * (len(used) - 2), "last"]
            assert all(marker in markers[place] for marker, place in zip(used, places, strict=True)), said
            seen[question.kind].update(used)
    assert seen["how"] == {marker for place in ("begin", "next", "last") for marker in markers[place]}
    assert seen["why"] == seen["avoid"] == {m for place in ("first", "second", "third") for m in markers[place]}


def test_every_opening_lead_and_way_of_saying_a_fact_is_used(answers):
    text = "\n".join(sentence for _, said in answers for sentence in said)
    for way, patterns in phrases()["sentences"].items():
        for pattern in set(patterns) - {"{Fact}."}:
            words = re.sub(r"\\{\w+\\}", ".+", re.escape(pattern))
            assert re.search(f"{words}$", text, re.MULTILINE | re.IGNORECASE), (way, pattern)
    for lead in itertools.chain(*phrases()["conditions"].values()):
        assert f"\n{lead}, " in text, lead
    for question, said in answers:
        assert said[0] in {fill(p, question.activity, question.object) for p in phrases()["openings"][question.kind]}


def test_joined_steps_are_in_the_order_of_the_plan_and_in_answers_without_markers(answers):
    joined = []
    for question, said in answers:
        steps = [step.format(o=question.object) for step in question.activity.steps]
        for sentence in said:
            told = sorted((sentence.lower().index(step), i) for i, step in enumerate(steps) if step in sentence.lower())
            if len(told) > 1:
                assert told[0][1] < told[1][1] and len(told) == 2, sentence
                assert not any(map(marker_of, said)), said
                joined.append(question.kind)
    assert len(joined) > 100 and set(joined) == {"how"}


def test_a_thread_is_a_question_an_answer_and_what_fits_to_say_of_its_kind(monkeypatch):
    rng, drawn, any_answer = random.Random(0), [], corpus._any_answer
    monkeypatch.setattr(corpus, "_any_answer", lambda *given: drawn.append(any_answer(*given)) or drawn[-1])
    for question in rng.choices(questions(), k=2000):
        asked, answer, reaction = corpus._thread(rng, question).split("\n")
        said, kind = drawn[-1]
        assert (asked, answer) == (question.text, said)
        assert reaction in {fill(text, question.activity, question.object) for text in phrases()["reactions"][kind]}
        assert kind != "good" or gold_score(question.text, answer) > 5
    kinds = Counter(kind for _, kind in drawn)
    assert set(kinds) == {"good", *ERROR_KINDS}
    assert kinds["good"] / 2000 == pytest.approx(1 / 2, abs=0.05)
    assert kinds["repetitive"] / 2000 == pytest.approx(ERROR_KINDS["repetitive"] / 2, abs=0.04)


def test_every_sort_of_document_is_written_as_often_as_its_share_says(texts):
    assert sum(corpus._DOCUMENTS.values()) == pytest.approx(1)
    asked = {normalise(question.text) for question in questions()}
    reactions = itertools.chain(*phrases()["reactions"].values())
    ends = re.compile("|".join(re.sub(r"\\{\w+\\}", ".+", re.escape(text)) for text in reactions))
    lines = [text.split("\n") for text in texts]
    found = {
        corpus._thread: [len(t) == 3 and normalise(t[0]) in asked and bool(ends.fullmatch(t[2])) for t in lines],
        corpus._top_posted: [len(t) == 2 and t[1].startswith("> ") and normalise(t[1]) in asked for t in lines],
        corpus._question_list: [len(t) in (3, 4) and all(normalise(line) in asked for line in t) for t in lines],
        corpus._forum: ["I tried to" in text and "last week." in text for text in texts],
        corpus._notes: [len(t) == 8 for t in lines],
    }
    for sort, is_one in found.items():
        share = corpus._DOCUMENTS[sort]
        assert abs(np.mean(is_one) - share) < 4 * math.sqrt(share * (1 - share) / len(texts)) + 0.005, sort


def test_a_mixed_up_answer_is_the_good_one_but_for_one_sentence():
    leads, conditions = tuple(itertools.chain(*phrases()["conditions"].values())), []
    for seed, question in enumerate(random.Random(0).sample(questions(), 200)):
        good = corpus._answer(random.Random(seed), question)
        mixed = corpus.mixed_up(random.Random(seed), question)
        different = [(own, other) for own, other in zip(good, mixed, strict=True) if own != other]
        assert len(different) == 1
        assert gold_score(question.text, " ".join(mixed)) < gold_score(question.text, " ".join(good))
        conditions += [question] if different[0][1].startswith(leads) else []
    assert conditions and all(question.condition for question in conditions)


def test_a_repeated_fact_stands_anywhere_in_the_answer_and_the_rest_is_that_of_the_good_one():
    places = set()
    for seed, question in enumerate(question for question in questions()[:400] if question.kind == "how"):
        good = corpus._answer(random.Random(seed), question)
        repeated = corpus._answer(random.Random(seed), question, repeats=True)
        changed = [i for i, (own, other) in enumerate(zip(good, repeated, strict=True)) if own != other]
        assert len(changed) == 1
        assert gold_parts(question.text, " ".join(repeated))["repetition"] < 0
        places.add(changed[0])
    assert len(places) > 1


@pytest.mark.parametrize("kind", ["rambling", "generic"])
def test_a_tip_does_not_give_a_bad_answer_away(kind):
    rng = random.Random(0)
    asked = rng.sample(questions(), 2000)
    good, bad = (
        np.mean(["Tip:" in write(question) for question in asked])
        for write in (lambda q: corpus.good_answer(rng, q), lambda q: corpus.bad_answer(rng, q, kind))
    )
    assert abs(good - bad) < 0.06


def test_points_cover_every_kind_of_question_in_every_split(tables):
    for table in tables.values():
        assert {parse_question(prompt).kind for prompt in table.prompt} == set(POINTS)
