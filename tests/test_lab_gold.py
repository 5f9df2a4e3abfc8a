"""The gold score of answers whose every part is computed by hand, and of attacks on it."""

import random

from rlhf.lab import WEIGHTS, gold_agreement, gold_by_sentence, gold_parts, gold_score, gold_table
from rlhf.lab.corpus import good_answer
from rlhf.lab.world import FACTS, POINTS, capitalise, families, fill, phrases, questions
from rlhf.profiles import load_profile

import numpy as np
import pandas as pd
import pytest
from attacks import ABOUT_ANOTHER_THING, ATTACKS, GIBBERISH
from datasets import Dataset

ASKED = [q for q in questions() if (q.activity.verb, q.object) == ("roast", "tofu slices")]
FAMILY = families()[0]
ROAST = ASKED[0].activity
GRILL = FAMILY.activities[1]
PLANT = families()[1].activities[0]
TOFU, OTHER = "tofu slices", "pork chops"
STEPS = [step.format(o=TOFU) for step in ROAST.steps]
CONDITION, ANOTHER_CONDITION = "in a small apartment", "during the winter"
LEADS, SENTENCES = phrases()["conditions"], phrases()["sentences"]
MARKERS = [marker for of_place in phrases()["markers"].values() for marker in of_place]

WITHOUT = {q.kind: q.text for q in ASKED if q.condition is None}
WITH = {q.kind: q.text for q in ASKED if q.condition == CONDITION}
MOST_WITH, MOST_WITHOUT, LEAST = 7.5, 6.75, -9.85

NOTHING = dict.fromkeys(WEIGHTS, 0.0)


def parts(prompt, response):
    """The parts in units of their weights: shares and counts, as they are written in the tests."""
    return {name: value / WEIGHTS[name] for name, value in gold_parts(prompt, response).items()}


def expect(prompt, response, **values):
    assert parts(prompt, response) == pytest.approx({**NOTHING, **values})


def sentences(*texts):
    return " ".join(f"{capitalise(text)}." for text in texts)


def listed(tools):
    return f"{', '.join(tools[:-1])} and {tools[-1]}" if len(tools) > 1 else tools[0]


def told(kind, facts):
    """Sentences that say facts of the kind that is asked for."""
    if kind == "need":
        return sentences(f"you will want {listed(facts)}")
    return sentences(*(f"{fact} causes trouble" if kind == "avoid" else fact for fact in facts))


def points(kind, count):
    """The first facts that a question of the kind asks for, said in sentences."""
    return told(kind, (STEPS if kind == "how" else getattr(ROAST, POINTS[kind][0]))[:count])


def opening(kind, object_=TOFU, activity=ROAST, number=0):
    return fill(phrases()["openings"][kind][number], activity, object_)


def advised(condition, number=0, family=FAMILY):
    return f"{LEADS[condition][0]}, {family.conditions[condition][number]}."


def good(kind, condition=CONDITION):
    """The best answer to a question: everything asked for, in order, the condition and a tip."""
    answer = [opening(kind), points(kind, POINTS[kind][1])]
    if condition:
        answer.append(advised(condition))
    return " ".join([*answer, f"Tip: {ROAST.tips[0]}."])


GOOD = {"object": 1, "activity": 1, "completeness": 1, "order": 1, "tip": 1, "ended": 1}


@pytest.mark.parametrize("kind", ["how", "avoid", "need"])
def test_best_answer_to_a_question_with_a_condition_reaches_the_documented_maximum(kind):
    expect(WITH[kind], good(kind), **GOOD, condition=1)
    assert gold_score(WITH[kind], good(kind)) == MOST_WITH


@pytest.mark.parametrize("kind", POINTS)
def test_best_answer_to_a_question_without_a_condition_reaches_the_documented_maximum(kind):
    expect(WITHOUT[kind], good(kind, condition=None), **GOOD)
    assert gold_score(WITHOUT[kind], good(kind, condition=None)) == MOST_WITHOUT


def test_weights_add_up_to_the_documented_maximum_and_minimum():
    assert sum(weight for weight in WEIGHTS.values() if weight > 0) == MOST_WITH
    assert MOST_WITH - WEIGHTS["condition"] == MOST_WITHOUT
    most = {"repetition": 4, "filler": 4, "foreign": 3, "garbled": 4}
    assert sum(count * WEIGHTS[part] for part, count in most.items()) == pytest.approx(LEAST)


def test_worst_answer_reaches_the_documented_minimum():
    filler = " ".join(2 * phrases()["filler"][:4])
    garbled = "Word aa here. Word bb here. Word cc here."
    response = f"{filler} {garbled} Pork chops and lamb steaks and salmon fillets"
    expect(WITH["how"], response, repetition=4, filler=4, foreign=3, garbled=4)
    assert gold_score(WITH["how"], response) == LEAST


def test_every_part_of_a_mixed_answer_as_counted_by_hand():
    response = (
        "To roast tofu slices, follow a clear plan. "  # object 1
        f"First, {STEPS[0]}. "  # own 1, point 0
        f"Next, {STEPS[2]}. "  # object 2, own 2, point 2: "{o}" stands in this step
        f"Then {STEPS[1]}. "  # object 3, own 3, point 1: out of order
        f"Tip: {GRILL.tips[0]}. "  # foreign 1
        "It is what it is. "  # filler 1
        "I like trains. "  # garbled 1
        "Pork chops are nice"  # other object: foreign 2, garbled 2; does not end
    )
    assert ["{o}" in step for step in ROAST.steps[:3]] == [False, True, True]
    shares = {"object": 3 / 4, "activity": 3 / 4, "completeness": 3 / 4}
    expect(WITH["how"], response, **shares, order=0, filler=1, foreign=2, garbled=2)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 6])
def test_completeness_counts_distinct_steps_up_to_four(count):
    relevance = (0, 1 / 2, 1, 1, 1, 1, 1)[count]
    shares = {"object": relevance, "activity": relevance, "completeness": min(count, 4) / 4, "order": float(count >= 2)}
    expect(WITHOUT["how"], f"{opening('how')} {points('how', count)}", **shares, ended=1)


@pytest.mark.parametrize("kind", ["why", "avoid", "need"])
def test_only_facts_of_the_kind_that_was_asked_for_make_an_answer_complete(kind):
    expect(WITHOUT[kind], points(kind, 2), activity=1, completeness=2 / 3, order=1, ended=1)
    expect(WITHOUT[kind], sentences(STEPS[0], STEPS[3]), ended=1, filler=1)
    for other in set(POINTS) - {kind}:
        expect(WITHOUT[other], points(kind, 3), ended=1, filler=3)


@pytest.mark.parametrize("kind", POINTS)
@pytest.mark.parametrize(("count", "relevance"), [(0, 0), (1, 1 / 2), (2, 1), (3, 1)])
def test_relevance_is_none_without_a_point_half_with_one_and_whole_with_two(kind, count, relevance):
    got = parts(WITHOUT[kind], f"{opening(kind)} {points(kind, count) if count else ''} Tip: {ROAST.tips[0]}.")
    assert (got["object"], got["activity"], got["tip"]) == (relevance, relevance, 1)


def test_order_of_the_steps_is_that_of_the_plan():
    assert parts(WITHOUT["how"], sentences(STEPS[0], STEPS[3], STEPS[5]))["order"] == 1
    assert parts(WITHOUT["how"], sentences(STEPS[3], STEPS[0], STEPS[5]))["order"] == 0
    assert parts(WITHOUT["how"], sentences(STEPS[0], STEPS[5], STEPS[3]))["order"] == 0
    assert parts(WITHOUT["how"], sentences(STEPS[3]))["order"] == 0  # one step has none


@pytest.mark.parametrize(("kind", "field"), [("why", "reasons"), ("avoid", "mistakes"), ("need", "tools")])
def test_other_facts_have_no_order_but_a_first_step_stands_behind_them(kind, field):
    facts = getattr(ROAST, field)
    start = SENTENCES[kind][0].format(fact=STEPS[0])
    one, other = told(kind, facts[1:2]), told(kind, facts[:1])
    tip = f"Tip: {ROAST.tips[0]}."
    for text, order in (
        (f"{one} {other}", 1),
        (f"{other} {one}", 1),
        (f"{one} {other} {start}", 1),
        (f"{one} {tip} {other} {start} {tip}", 1),
        (f"{one} {start} {other}", 0),
        (f"{start} {one} {other}", 0),
    ):
        assert parts(WITHOUT[kind], text)["order"] == order, text


@pytest.mark.parametrize("kind", POINTS)
def test_an_opening_that_is_not_the_first_sentence_breaks_the_order(kind):
    body = points(kind, 2)
    first, *rest = body.split(". ")
    assert parts(WITHOUT[kind], f"{opening(kind)} {body}")["order"] == 1
    assert parts(WITHOUT[kind], f"{body} {opening(kind)}")["order"] == 0
    assert parts(WITHOUT[kind], f"{opening(kind)} {opening(kind, number=1)} {body}")["order"] == 0
    assert parts(WITHOUT[kind], f"{body} {opening('how' if kind == 'why' else 'why')}")["order"] == 0
    if rest:
        assert parts(WITHOUT[kind], f"{first}. {opening(kind)} {'. '.join(rest)}")["order"] == 0


def test_a_condition_or_a_tip_may_stand_anywhere():
    two, tip, advice = points("how", 2), f"Tip: {ROAST.tips[0]}.", advised(CONDITION)
    for text in (f"{tip} {advice} {two}", f"{two} {tip} {advice}", f"{advice} {two} {tip}"):
        expect(WITH["how"], text, object=1, activity=1, completeness=1 / 2, order=1, condition=1, tip=1, ended=1)


def test_object_is_the_share_of_mentions_that_are_right():
    two = sentences(STEPS[0], STEPS[3])
    assert TOFU not in two
    whole = {"activity": 1, "completeness": 1 / 2, "order": 1, "ended": 1}
    expect(WITHOUT["how"], two, **whole)
    expect(WITHOUT["how"], f"{opening('how')} {two}", object=1, **whole)
    text = f"{opening('how')} {two} {sentences(STEPS[4])} Use good things for the {OTHER}."
    assert TOFU in STEPS[4]
    expect(WITHOUT["how"], text, object=2 / 3, **whole | {"completeness": 3 / 4}, filler=1, foreign=1)


def test_an_answer_of_which_most_objects_are_others_makes_no_points():
    body = f"{sentences(STEPS[0], STEPS[3])} Tip: {ROAST.tips[0]}."
    one, two = f"Use good things for the {OTHER}.", "Be careful with the lamb steaks."
    shares = {"object": 1 / 2, "activity": 1, "completeness": 1 / 2, "order": 1, "tip": 1}
    expect(WITHOUT["how"], f"{opening('how')} {body} {one}", **shares, ended=1, filler=1, foreign=1)
    expect(WITHOUT["how"], f"{opening('how')} {body} {one} {two}", ended=1, filler=2, foreign=2)
    expect(WITHOUT["how"], f"{body} {one}", ended=1, filler=1, foreign=1)


def test_a_fact_in_a_sentence_that_names_another_object_is_no_point():
    joined = f"{STEPS[1]}, and then {STEPS[2]}"
    expect(WITHOUT["how"], sentences(joined), object=1, activity=1, completeness=1 / 2, order=1, ended=1)
    mixed = f"{STEPS[1]}, and then {STEPS[2].replace(TOFU, OTHER)}"
    expect(WITHOUT["how"], f"{opening('how')} {sentences(mixed)}", ended=1, foreign=1)
    # With a second point elsewhere: 3 of 4 objects, 2 of the 4 steps.
    text = f"{opening('how')} {sentences(mixed, STEPS[3], STEPS[4])}"
    assert TOFU in STEPS[4]
    whole = {"activity": 1, "completeness": 2 / 4, "order": 1, "ended": 1}
    expect(WITHOUT["how"], text, object=3 / 4, **whole, foreign=1)


def test_part_of_an_object_name_is_no_mention():
    text = f"Tofu. Slices. Mytofu slicess. {sentences(STEPS[0], STEPS[3])}"
    expect(WITHOUT["how"], text, activity=1, completeness=1 / 2, order=1, ended=1, garbled=3)


def test_facts_of_another_activity_are_foreign_even_with_the_right_object():
    response = sentences(*(step.format(o=TOFU) for step in GRILL.steps[:3]))
    assert TOFU in response
    expect(WITHOUT["how"], response, ended=1, foreign=3)
    own = f"{points('how', 2)} {sentences(GRILL.steps[0])}"
    expect(WITHOUT["how"], own, object=1, activity=2 / 3, completeness=1 / 2, order=1, ended=1, foreign=1)


@pytest.mark.parametrize("asked", [WITHOUT["how"], WITH["how"]])
def test_advice_for_a_condition_that_was_not_asked_for_is_foreign(asked):
    expect(asked, advised(ANOTHER_CONDITION), ended=1, foreign=1)


def test_condition_is_answered_by_its_own_advice_once():
    for advice in FAMILY.conditions[CONDITION]:
        for lead in LEADS[CONDITION]:
            expect(WITH["how"], f"{lead}, {advice}.", condition=1, ended=1)
    expect(WITH["how"], f"{advised(CONDITION)} {advised(CONDITION, number=1)}", condition=1, ended=1)


def test_advice_of_another_family_for_the_same_condition_is_foreign():
    other = next(family for family in families()[1:] if CONDITION in family.conditions)
    expect(WITH["how"], advised(CONDITION, family=other), ended=1, foreign=1)


def test_advice_without_the_lead_of_its_condition_is_garbled():
    advice = FAMILY.conditions[CONDITION][0]
    expect(WITH["how"], sentences(advice), garbled=1)
    expect(WITH["how"], f"{LEADS[ANOTHER_CONDITION][0]}, {advice}.", garbled=1)


def test_tip_of_the_activity_counts_once_and_that_of_another_is_foreign():
    expect(WITHOUT["how"], f"Tip: {ROAST.tips[0]}. Tip: {ROAST.tips[1]}.", tip=1, ended=1, filler=1)
    expect(WITHOUT["how"], f"Tip: {GRILL.tips[0]}.", foreign=1, ended=1)


@pytest.mark.parametrize("ending", [".", "!", "?", ". \n"])
def test_finished_sentence_ends_in_a_sign(ending):
    expect(WITHOUT["how"], STEPS[0] + ending, activity=1 / 2, completeness=1 / 4, ended=1)


def test_whole_sentence_without_a_sign_makes_its_point_but_is_not_ended():
    expect(WITHOUT["how"], STEPS[0], activity=1 / 2, completeness=1 / 4)
    expect(WITHOUT["how"], f"{STEPS[0]},", activity=1 / 2, completeness=1 / 4)


@pytest.mark.parametrize("ending", [" and then", " and then.", " finally.", f" {STEPS[3]}."])
def test_sentence_that_runs_on_is_garbled_and_does_not_end_whatever_its_sign(ending):
    expect(WITHOUT["how"], STEPS[0] + ending, garbled=1)


def test_only_the_last_sentence_must_be_whole_for_the_answer_to_end():
    expect(
        WITHOUT["how"], f"I like trains. {sentences(STEPS[0])}", activity=1 / 2, completeness=1 / 4, ended=1, garbled=1
    )
    expect(WITHOUT["how"], f"{sentences(STEPS[0])} I like trains.", activity=1 / 2, completeness=1 / 4, garbled=1)


@pytest.mark.parametrize(("times", "counted"), [(1, 0), (2, 1), (3, 2), (4, 3), (5, 4), (9, 4)])
def test_each_repeated_sentence_costs_up_to_four(times, counted):
    response = sentences(*[STEPS[0]] * times)
    expect(WITHOUT["how"], response, activity=1 / 2, completeness=1 / 4, ended=1, repetition=counted)


def test_a_fact_said_in_another_way_is_a_repetition():
    fact = ROAST.reasons[0]
    ways = " ".join(pattern.format(fact=fact, Fact=capitalise(fact)) for pattern in SENTENCES["reasons"])
    expect(WITHOUT["why"], f"Besides, {fact}. {ways}", activity=1 / 2, completeness=1 / 3, ended=1, repetition=4)


def test_repetitions_count_in_filler_and_in_garbled_sentences_too():
    expect(WITHOUT["how"], " ".join([phrases()["filler"][0]] * 3), ended=1, filler=3, repetition=2)
    expect(WITHOUT["how"], "I like trains. I like trains.", garbled=2, repetition=1)
    expect(WITHOUT["how"], f"Oven {STEPS[0]}. Tray {STEPS[0]}.", garbled=2, repetition=1)


def test_four_words_twice_in_one_sentence_are_a_repetition():
    expect(WITHOUT["how"], "We like this old song, we like this old song.", garbled=1, repetition=1)
    expect(WITHOUT["how"], "We like this song, we like this one.", garbled=1)


@pytest.mark.parametrize(("count", "counted"), [(0, 0), (1, 1), (4, 4), (7, 4)])
def test_each_sentence_of_filler_costs_up_to_four(count, counted):
    response = " ".join([opening("how"), *phrases()["filler"][:count]])
    expect(WITHOUT["how"], response, ended=1, filler=counted)


@pytest.mark.parametrize(("count", "counted"), [(1, 1), (4, 4), (7, 4)])
def test_each_garbled_sentence_costs_up_to_four(count, counted):
    expect(WITHOUT["how"], " ".join(f"{word * 3}." for word in "abcdefg"[:count]), garbled=counted)


def test_every_sentence_that_says_nothing_is_filler_and_whole():
    empty = [*phrases()["filler"], *phrases()["evasive"], *(fill(s, ROAST, TOFU) for s in phrases()["generic"])]
    for sentence in empty:
        expect(WITHOUT["how"], sentence, ended=1, filler=1)


@pytest.mark.parametrize("kind", POINTS)
def test_every_opening_about_the_thing_asked_for_is_no_filler(kind):
    for number in range(len(phrases()["openings"][kind])):
        for asked in POINTS:
            expect(WITHOUT[asked], opening(kind, number=number), ended=1)
            expect(WITHOUT[asked], opening(kind, activity=GRILL, number=number), ended=1, filler=1)
            expect(WITHOUT[asked], opening(kind, OTHER, number=number), ended=1, foreign=1)


def ways_of(field):
    """The patterns that say a fact of the field, of which `joined` takes two and `tools` a list."""
    ways = {"steps": ["steps", "why", "avoid", "need"]}.get(field, [field])
    return [pattern for way in ways for pattern in SENTENCES[way]]


@pytest.mark.parametrize("field", FACTS)
def test_every_fact_of_the_world_is_found_in_every_sentence_and_belongs_to_its_activity(field):
    rng = random.Random(0)
    kind = next((kind for kind, (asked, _) in POINTS.items() if asked == field), "how")  # tips: any
    prompts = {(q.activity.verb, q.object): q.text for q in questions() if q.kind == kind and not q.condition}
    counted = {"tip": 1} if field == "tips" else {"activity": 1 / 2, "completeness": 1 / POINTS[kind][1]}
    for family in families():
        for i, activity in enumerate(family.activities):
            name, neighbor = rng.choice(family.objects), family.activities[i - 1]
            for fact in getattr(activity, field):
                about = {"object": 1 / 2} if "{o}" in fact else {}
                said = fact.format(o=name)
                for pattern in ways_of(field):
                    text = pattern.format(fact=said, facts=said, Fact=capitalise(said))
                    marked = f"{rng.choice(MARKERS)} {text[0].lower()}{text[1:]}"
                    for read in [text] if pattern.startswith(tuple(MARKERS)) else [text, marked]:
                        expect(prompts[activity.verb, name], read, **counted, **about, ended=1)
                        expect(prompts[neighbor.verb, name], read, ended=1, foreign=1)


def test_every_advice_of_the_world_is_found_behind_every_lead_of_its_condition():
    for family in families():
        asked = {q.condition: q.text for q in questions() if q.activity is family.activities[0] and q.kind == "how"}
        for condition, advice in family.conditions.items():
            for lead in LEADS[condition]:
                for said in advice:
                    expect(asked[condition], f"{lead}, {said}.", condition=1, ended=1)


def test_markers_of_any_place_are_no_part_of_a_sentence():
    plain = parts(WITHOUT["how"], f"{opening('how')} {points('how', 2)}")
    for marker in MARKERS:
        assert parts(WITHOUT["how"], f"{opening('how')} {marker} {STEPS[0]}. {marker} {STEPS[1]}.") == plain
    expect(WITHOUT["how"], "Finally.", garbled=1)


def test_a_chain_of_markers_breaks_a_sentence():
    expect(WITHOUT["how"], f"First, then, now {STEPS[0]}.", garbled=1)


@pytest.mark.parametrize("between", ["7", "и", "_", "x2"])
def test_a_sign_of_another_script_or_a_digit_between_words_breaks_a_sentence(between):
    first, rest = STEPS[0].split(maxsplit=1)
    assert parts(WITHOUT["how"], f"{first} {rest}.")["garbled"] == 0
    expect(WITHOUT["how"], f"{first} {between} {rest}.", garbled=1)


@pytest.mark.parametrize("kind", POINTS)
def test_facts_of_the_activity_that_were_not_asked_for_are_filler(kind):
    others = [other for other in POINTS if other not in (kind, "need")]
    padded = f"{good(kind, None)} {' '.join(points(other, 2) for other in others)}"
    got = parts(WITHOUT[kind], padded)
    assert got["filler"] > parts(WITHOUT[kind], good(kind, None))["filler"] == 0
    assert gold_score(WITHOUT[kind], padded) < gold_score(WITHOUT[kind], good(kind, None))


def test_advice_counts_only_where_most_objects_are_the_one_asked_for():
    others = "Pork chops and lamb steaks are nice."
    assert parts(WITH["how"], f"{points('how', 2)} {advised(CONDITION)}")["condition"] == 1
    assert parts(WITH["how"], f"{points('how', 2)} {others} {advised(CONDITION)}")["condition"] == 0


def test_joined_steps_are_two_points_in_the_order_in_which_they_are_said():
    for pattern in SENTENCES["joined"]:
        forward = pattern.format(Fact=capitalise(STEPS[0]), other=STEPS[3])
        backward = pattern.format(Fact=capitalise(STEPS[3]), other=STEPS[0])
        expect(WITHOUT["how"], forward, activity=1, completeness=2 / 4, order=1, ended=1)
        expect(WITHOUT["how"], backward, activity=1, completeness=2 / 4, ended=1)
        twice = pattern.format(Fact=capitalise(STEPS[0]), other=STEPS[0])
        expect(WITHOUT["how"], twice, activity=1 / 2, completeness=1 / 4, ended=1, repetition=1)
        foreign = pattern.format(Fact=capitalise(STEPS[0]), other=GRILL.steps[0])
        expect(WITHOUT["how"], foreign, activity=1 / 4, completeness=1 / 4, ended=1, foreign=1)
        reasons = pattern.format(Fact=capitalise(ROAST.reasons[0]), other=ROAST.reasons[1])
        expect(WITHOUT["why"], reasons, garbled=1)


def test_any_two_steps_of_an_activity_can_be_joined_though_some_share_four_words():
    asked = {q.activity.verb: q for q in questions() if q.kind == "how" and not q.condition}
    for question in asked.values():
        steps = [step.format(o=question.object) for step in question.activity.steps]
        for i, first in enumerate(steps):
            for second in steps[i + 1 :]:
                text = (
                    f"{opening('how', question.object, question.activity)} {sentences(f'{first} before you {second}')}"
                )
                expect(question.text, text, object=1, activity=1, completeness=2 / 4, order=1, ended=1)


A, B, C = ROAST.tools


@pytest.mark.parametrize(("tools", "count"), [(A, 1), (f"{A} and {B}", 2), (f"{C}, {A} and {B}", 3)])
@pytest.mark.parametrize("pattern", SENTENCES["tools"])
def test_list_of_tools_is_one_sentence_of_as_many_points(pattern, tools, count):
    shares = {"activity": min(count, 2) / 2, "completeness": count / 3, "order": float(count > 1)}
    expect(WITHOUT["need"], pattern.format(facts=tools), **shares, ended=1)


NO_LISTS = [f"{A}, {B}", f"{A} and", f"and {A}", f"{A} and {B} and {C}", f"{A} and {B}, {C}", f"{A} or {B}", "and", ""]
NO_LISTS += [f"{A} and {other}" for other in (ROAST.mistakes[0], ROAST.steps[0], A.split()[-1])]


@pytest.mark.parametrize("tools", NO_LISTS)
def test_list_of_tools_that_is_no_list_is_garbled(tools):
    expect(WITHOUT["need"], f"You will want {tools}.", garbled=1)


def test_a_tool_of_another_activity_in_a_list_is_foreign():
    shares = {"activity": 1 / 4, "completeness": 1 / 3}  # relevance 1/2, and half of the facts
    expect(WITHOUT["need"], f"You will want {A} and {GRILL.tools[0]}.", **shares, ended=1, foreign=1)


@pytest.mark.parametrize(
    "sentence",
    [
        f"It pays because {STEPS[0]}.",  # a step in a sentence of reasons
        f"{capitalise(ROAST.reasons[0])} causes trouble.",
        f"Tip: {STEPS[0]}.",
        f"You will want {ROAST.mistakes[0]}.",
        f"Then {ROAST.tips[0]}.",
        sentences(ROAST.mistakes[0]),  # alone, only steps and reasons are sentences
        sentences(ROAST.tools[0]),
        sentences(ROAST.tips[0]),
        f"{capitalise(STEPS[0])} {STEPS[3]}.",  # two sentences without what joins them
        f"Well, {STEPS[0]}.",
        f"{capitalise(STEPS[0])} you know.",
        sentences(" ".join(STEPS[0].split()[:-1])),
        sentences(" ".join(reversed(STEPS[0].split()))),
        f"{capitalise(STEPS[0])} it is what it is.",
        "It is.",
        "It is what it was.",
        "To roast, follow a clear plan.",
        WITHOUT["why"],
    ],
)
def test_sentence_that_is_none_of_the_world_is_garbled_and_its_facts_earn_nothing(sentence):
    for prompt in WITHOUT.values():
        expect(prompt, sentence, garbled=1)


def test_facts_of_another_activity_in_a_garbled_sentence_are_not_foreign_but_its_objects_are():
    expect(WITHOUT["how"], f"Well, {GRILL.steps[0]}.", garbled=1)
    expect(WITHOUT["how"], f"Well, {OTHER}.", garbled=1, foreign=1)


def worse_answers():
    how = points("how", 4)
    start = f"{opening('how')} "
    tip = f" Tip: {ROAST.tips[0]}."
    return {
        "off topic": sentences(*(s.format(o="rose bushes") for s in PLANT.steps[:4])),
        "wrong object": good("how", None).replace(TOFU, OTHER),
        "wrong action": sentences(*(s.format(o=TOFU) for s in GRILL.steps[:4])),
        "rambling": start + " ".join(phrases()["filler"][:5]),
        "evasive": " ".join(phrases()["evasive"][:5]),
        "generic": start + " ".join(fill(s, ROAST, TOFU) for s in phrases()["generic"][:5]),
        "repetitive": start + how + f" {sentences(*[STEPS[3]] * 3)}" + tip,
        "cut off": (start + how)[:-12],
        "fewer steps": start + sentences(STEPS[0]) + tip,
        "disordered": start + sentences(STEPS[2], STEPS[0], STEPS[3], STEPS[1]) + tip,
        "garbled": start + how.replace(" the ", " ") + tip,
    }


@pytest.mark.parametrize("kind", worse_answers())
def test_each_kind_of_error_scores_lower_than_a_good_answer(kind):
    best = gold_score(WITHOUT["how"], good("how", None))
    assert gold_score(WITHOUT["how"], worse_answers()[kind]) <= best - 0.9


def test_errors_of_relevance_score_lower_than_errors_of_form():
    scores = {kind: gold_score(WITHOUT["how"], answer) for kind, answer in worse_answers().items()}
    relevance = [scores[kind] for kind in ("off topic", "wrong object", "wrong action")]
    form = [scores[kind] for kind in ("cut off", "fewer steps", "disordered")]
    assert max(relevance) < min(form)


@pytest.fixture(scope="module")
def attacked():
    """The gold scores of good answers to 200 questions, and of each attack on the same answers."""
    rows = []
    for seed, question in enumerate(random.Random(0).sample(questions(), 200)):
        whole = good_answer(random.Random(seed), question)
        texts = {"whole": whole}
        for name, attack in ATTACKS.items():
            texts[name] = attack(random.Random(f"{name} {question.text}"), question, whole)
        rows.append({name: gold_score(question.text, text) for name, text in texts.items()})
    return pd.DataFrame(rows)


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "sentences_shuffled"])
def test_every_attack_scores_lower_than_the_answer_that_it_was_made_of(attacked, name):
    assert (attacked[name] < attacked.whole).all()


def test_shuffled_sentences_nearly_always_score_lower_and_never_higher(attacked):
    assert (attacked.sentences_shuffled < attacked.whole).mean() >= 0.95  # some orders are as good
    assert (attacked.sentences_shuffled <= attacked.whole).all()


def test_mean_scores_are_in_the_order_that_any_reader_would_give(attacked):
    ranks = ["whole", "sentences_shuffled", "said_twice", "half", "first_sentence_alone"]
    means = attacked[ranks].mean()
    assert (means.diff()[1:] < -0.5).all()
    assert means["first_sentence_alone"] >= attacked[list(GIBBERISH)].mean().max()


@pytest.mark.parametrize("name", [*GIBBERISH, *ABOUT_ANOTHER_THING])
def test_gibberish_and_answers_about_another_thing_earn_next_to_nothing_on_average(attacked, name):
    assert attacked[name].mean() <= attacked.whole.mean() / 10


@pytest.mark.parametrize("name", ["keywords", "words_shuffled", "fragments"])
def test_no_list_of_keywords_shuffled_words_or_fragments_earns_anything(attacked, name):
    assert attacked[name].max() <= 0


def test_case_punctuation_and_line_breaks_between_words_do_not_count():
    answer = good("how")
    score = gold_score(WITH["how"], answer)
    assert gold_score(WITH["how"], answer.upper()) == score
    assert gold_score(WITH["how"], answer.lower()) == score
    assert gold_score(WITH["how"], answer.replace(",", " ,")) == score
    assert gold_score(WITH["how"], answer.replace(". ", ".\n")) == score
    assert gold_score(WITH["how"], answer.replace(".", "!")) == score
    assert gold_score(WITH["how"], answer.replace(".", "?")) == score
    assert gold_score(WITH["how"].upper(), answer) == score


BROKEN = {
    "empty": "",
    "white space": " \n\t\n ",
    "signs": "... !!! ??? ### $$ ()[]{}",
    "unicode": "日本語のテキスト。 Ünïcode — «naïve» 🙂 \u202e\u200b",
    "lone surrogate": "a \ud800 b.",
    "control characters": "\x00\x01 \x1b[31m.\r\n",
    "braces": "{o} {verb} {} @ @@ @.",
    "markers only": "First, next, then, finally. Tip: First, second.",
    "one letter": "a",
    "no spaces": "tofuslicesroast" * 200,
    "broken facts": " ".join(word for step in STEPS for word in step.split()[::-1]),
    "template": "### Instruction:\nHow?\n\n### Response:\n",
    "very long": "then heat the oven until it is fully hot " * 20_000,
    "many sentences": "Roast. " * 20_000,
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("kind", POINTS)
def test_any_text_gets_a_score_between_the_documented_bounds(kind, name):
    score = gold_score(WITHOUT[kind], BROKEN[name])
    assert LEAST <= score <= MOST_WITHOUT


@pytest.mark.parametrize("name", ["empty", "white space", "signs"])
def test_text_without_a_word_counts_as_all_garbled(name):
    expect(WITHOUT["how"], BROKEN[name], garbled=4)


def test_random_pieces_of_answers_stay_in_bounds_and_their_parts_sum_to_the_score():
    rng = random.Random(1)
    words = f"{good('how')} {good('avoid')} {' '.join(phrases()['filler'])} pork chops rose bushes".split()
    said = f"{good('how')} {good('avoid')} {' '.join(phrases()['filler'])} {' '.join(worse_answers().values())}"
    for piece in [*[words] * 300, *[[f"{s}." for s in said.split(".")]] * 300]:
        question = rng.choice(questions())
        text = " ".join(rng.choices(piece, k=rng.randrange(60)))
        got = gold_parts(question.text, text)
        assert list(got) == list(WEIGHTS)
        assert gold_score(question.text, text) == pytest.approx(sum(got.values()), abs=1e-6)
        assert LEAST <= gold_score(question.text, text) <= (MOST_WITH if question.condition else MOST_WITHOUT)


def test_sentences_as_counted_by_hand():
    response = f"{opening('how')} {points('how', 2)} {sentences(STEPS[0])} I like trains.\nTip: {ROAST.tips[0]}."
    lines = gold_by_sentence(WITHOUT["how"], response)
    assert "\n".join(sentence for sentence, _ in lines) == response.replace(". ", ".\n")
    changed = [{part: value for part, value in added.items() if value} for _, added in lines]
    point = {"object": 0.75, "activity": 0.75, "completeness": 0.375}
    assert changed == [
        {},
        point,
        {**point, "order": 1},
        {"repetition": -0.75},
        {"garbled": -0.75},
        {"tip": 0.75, "ended": 0.5},
    ]


def test_parts_of_all_sentences_sum_to_those_of_the_answer():
    told = f"{good('how')} {good('avoid')} {' '.join(phrases()['filler'])} {' '.join(worse_answers().values())}".split(
        "."
    )
    rng = random.Random(2)
    answers = [
        ". ".join(rng.choices(told, k=rng.randrange(1, 12))) + rng.choice(["", ".", "\n..."]) for _ in range(100)
    ]
    for answer in [*answers, "", "...", "One\ntwo."]:
        lines = gold_by_sentence(WITH["how"], answer)
        sums = {part: sum(added[part] for _, added in lines) for part in WEIGHTS}
        assert sums == pytest.approx(gold_parts(WITH["how"], answer), abs=1e-6)


@pytest.mark.parametrize("judge", [gold_score, gold_parts])
def test_prompt_that_is_no_question_of_the_world_is_refused(judge):
    with pytest.raises(ValueError, match="not a question of the lab world"):
        judge("What is the capital of France?", "Paris.")


def test_agreement_is_one_zero_or_half_by_the_gold_scores_of_a_pair():
    best, poor = good("how", None), "It is what it is."
    rows = {"prompt": [WITHOUT["how"]] * 3, "chosen": [best, poor, poor], "rejected": [poor, best, poor]}
    assert gold_agreement(load_profile("smoke"), Dataset.from_dict(rows)).tolist() == [1, 0, 0.5]


def test_table_holds_the_parts_and_their_sum():
    prompts, responses = [WITHOUT["how"], WITH["how"]], [good("how", None), "Broken"]
    table = gold_table(load_profile("smoke"), prompts, responses)
    assert list(table.columns) == [*WEIGHTS, "gold"]
    assert table.gold.tolist() == pytest.approx([gold_score(p, r) for p, r in zip(prompts, responses, strict=True)])


def test_real_data_has_no_gold_score():
    real = load_profile("gpt2")
    rows = Dataset.from_dict({"prompt": ["Why?", "How?"], "chosen": ["a", "b"], "rejected": ["c", "d"]})
    assert np.isnan(gold_agreement(real, rows)).tolist() == [True, True]
    assert gold_table(real, rows["prompt"], rows["chosen"]).empty
