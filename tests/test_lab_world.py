"""The lab world: the rules that world.toml and phrases.toml keep, and questions that can be read back."""

import itertools
import re
import string
from collections import Counter

from rlhf.lab.corpus import ERROR_KINDS
from rlhf.lab.world import POINTS, capitalise, families, family_of, fill, normalise, parse_question, phrases, questions

import pytest

FACTS = {"steps": 6, "reasons": 3, "mistakes": 3, "tools": 3, "tips": 2}
ACTIVITIES = [activity for family in families() for activity in family.activities]
OBJECTS = [name for family in families() for name in family.objects]
PHRASES = [phrase for a in ACTIVITIES for field in FACTS for phrase in getattr(a, field)] + [
    phrase for family in families() for answers in family.conditions.values() for phrase in answers
]
MARKERS = [marker for of_place in phrases()["markers"].values() for marker in of_place]
SENTENCES = phrases()["sentences"]


def repeated(values) -> list:
    return [value for value, count in Counter(values).items() if count > 1]


def parts_of_others(texts) -> list[tuple[str, str]]:
    """Pairs of texts of which the first stands in the second as whole words."""
    known, found = set(texts), []
    for text in known:
        words = text.split()
        spans = itertools.combinations(range(len(words) + 1), 2)
        parts = {" ".join(words[start:end]) for start, end in spans} - {text}
        found += [(part, text) for part in parts & known]
    return found


def test_world_has_the_sizes_that_its_head_promises():
    assert len(families()) == 12
    assert len(ACTIVITIES) >= 60
    assert {len(family.activities) for family in families()} == {5}
    assert {len(family.objects) for family in families()} == {8}
    assert all(len(family.conditions) >= 6 for family in families())
    assert {len(answers) for family in families() for answers in family.conditions.values()} == {2}
    for activity in ACTIVITIES:
        assert {field: len(getattr(activity, field)) for field in FACTS} == FACTS, activity.verb


def test_texts_are_lower_case_words_with_single_spaces():
    texts = [*PHRASES, *OBJECTS, *(a.verb for a in ACTIVITIES), *(a.gerund for a in ACTIVITIES)]
    assert [t for t in texts if not re.fullmatch(r"[a-z]+( [a-z]+)*", t.replace("{o}", "o"))] == []


def test_phrases_verbs_gerunds_and_objects_are_unique():
    for texts in (PHRASES, OBJECTS, [a.verb for a in ACTIVITIES], [a.gerund for a in ACTIVITIES]):
        assert repeated(texts) == []


def test_no_phrase_is_part_of_another_whatever_object_is_put_in():
    assert parts_of_others([normalise(phrase.replace("{o}", "zzz")) for phrase in PHRASES]) == []
    filled = [phrase.replace("{o}", name) for phrase in PHRASES for name in (OBJECTS if "{o}" in phrase else [""])]
    assert parts_of_others(filled) == []


def test_no_object_is_part_of_another_or_of_a_verb():
    names = [*OBJECTS, *(a.verb for a in ACTIVITIES), *(a.gerund for a in ACTIVITIES)]
    assert [(one, other) for one in OBJECTS for other in names if one != other and one in other] == []


def test_objects_stand_in_phrases_only_through_the_placeholder():
    assert [(name, phrase) for name in OBJECTS for phrase in PHRASES if name in phrase] == []
    assert [phrase for phrase in PHRASES if re.search(r"[{}]", phrase.replace("{o}", ""))] == []


def test_two_or_three_steps_name_the_object_and_no_other_fact_does():
    for activity in ACTIVITIES:
        assert sum("{o}" in step for step in activity.steps) in (2, 3), activity.verb
    others = [field for field in FACTS if field != "steps"]
    assert [p for a in ACTIVITIES for field in others for p in getattr(a, field) if "{o}" in p] == []


def test_no_fact_begins_with_a_marker_which_the_judge_would_strip():
    markers = tuple(f"{normalise(marker)} " for marker in MARKERS)
    assert len(markers) > 15 and all(marker[:-1] for marker in markers)
    assert [phrase for phrase in PHRASES if phrase.startswith(markers)] == []


def test_markers_stand_by_the_place_of_a_sentence_and_are_read_the_same_in_any_case():
    assert list(phrases()["markers"]) == ["begin", "next", "last", "first", "second", "third"]
    for of_place in phrases()["markers"].values():
        assert len(of_place) >= 3 and not repeated(of_place)
    assert [m for m in MARKERS if not re.fullmatch(r"[A-Z][a-z ]+,?", m)] == []


def test_every_condition_has_several_leads_of_its_own():
    used = {condition for family in families() for condition in family.conditions}
    assert used == set(phrases()["conditions"])
    leads = phrases()["conditions"].values()
    assert all(len(of_condition) >= 3 for of_condition in leads)
    assert repeated(normalise(lead) for of_condition in leads for lead in of_condition) == []


def placeholders(pattern: str) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(pattern) if name]


def test_every_way_of_saying_a_fact_has_its_place_for_it_and_ends_in_a_full_stop():
    assert set(SENTENCES) == {*FACTS, "joined", *(kind for kind in POINTS if kind != "how")}
    holds = {"joined": ["Fact", "other"], "tools": ["facts"]}
    for way, patterns in SENTENCES.items():
        assert patterns and not repeated(patterns)
        for pattern in patterns:
            found = placeholders(pattern)
            assert found == holds.get(way, found[:1]) and found in (["fact"], ["Fact"], ["Fact", "other"], ["facts"])
            assert pattern.endswith(".") and pattern.count(".") == 1
            assert pattern.startswith("{Fact}") == ("Fact" in found)  # else a fact would stand there in lower case


def test_facts_that_are_no_sentence_never_stand_alone():
    alone = [way for way, patterns in SENTENCES.items() if "{Fact}." in patterns]
    assert sorted(alone) == ["reasons", "steps"]  # the others are "crowding the tray", "a wide oven tray", ...


def test_a_reader_has_something_to_say_of_every_kind_of_answer():
    assert set(phrases()["reactions"]) == {"good", *ERROR_KINDS}
    for kind, reactions in phrases()["reactions"].items():
        assert len(reactions) >= 2 and not repeated(reactions), kind
        assert all(set(placeholders(text)) <= {"verb", "gerund", "object"} for text in reactions)


def test_wording_has_patterns_for_every_kind_of_question():
    for table in ("questions", "openings"):
        assert set(phrases()[table]) == set(POINTS)
        assert all(len(patterns) >= 2 and not repeated(patterns) for patterns in phrases()[table].values())
    for name in ("filler", "evasive", "generic"):
        assert len(phrases()[name]) >= 7 and not repeated(phrases()[name])


def test_wording_around_facts_and_of_bad_answers_holds_no_fact_and_no_object():
    wording = [*phrases()["filler"], *phrases()["evasive"], *phrases()["generic"], *MARKERS]
    wording += itertools.chain(*SENTENCES.values(), *phrases()["conditions"].values(), *phrases()["reactions"].values())
    for text in wording:
        words = f" {normalise(text)} "
        assert [p for p in [*PHRASES, *OBJECTS] if f" {normalise(p)} " in words] == []


def test_family_of_an_activity_holds_it():
    assert all(activity in family_of(activity).activities for activity in ACTIVITIES)


def test_fill_puts_in_verb_gerund_object_and_condition():
    activity = next(a for a in ACTIVITIES if a.verb == "roast")
    pattern = "{Gerund} {object}: {gerund}, to {verb}{condition}."
    assert fill(pattern, activity, "tofu slices") == "Roasting tofu slices: roasting, to roast."
    assert fill(pattern, activity, "tofu slices", "in the dark").endswith("to roast in the dark.")


def test_capitalise_changes_the_first_letter_only():
    assert [capitalise(text) for text in ("", "a", "let the iPhone rest")] == ["", "A", "Let the iPhone rest"]


def test_normalise_keeps_words_and_single_spaces():
    assert normalise("  First,\tturn the OVEN\n(to 200)... on! ") == "first turn the oven to 200 on"
    assert normalise("123 !? 日本") == "123 日本" and normalise("!? ...") == ""


def test_questions_are_every_form_of_every_topic():
    assert len({question.combination for question in questions()}) == len(ACTIVITIES) * 8 * len(POINTS)
    patterns = phrases()["questions"]
    expected = sum(
        8 * sum(1 + len(family_of(a).conditions) * ("{condition}" in p) for kind in POINTS for p in patterns[kind])
        for a in ACTIVITIES
    )
    assert len(questions()) == expected > 4 * len(ACTIVITIES) * 8


def test_every_question_parses_back_to_itself():
    assert [q for q in questions() if parse_question(q.text) is not q] == []


def test_a_question_is_read_whatever_its_case_punctuation_and_white_space():
    question = next(q for q in questions() if q.condition and q.kind == "how")
    for text in (question.text.upper(), question.text.rstrip("?."), f"  {question.text.replace(' ', chr(10))} !"):
        assert parse_question(text) is question


def test_questions_hold_their_verb_object_and_condition():
    for question in questions()[:: len(questions()) // 500]:
        assert question.object in question.text
        assert question.activity.verb in question.text or question.activity.gerund in question.text
        assert (question.condition or "") in question.text


@pytest.mark.parametrize("prompt", ["", "What is the capital of France?", "How do I roast granite?", "日本"])
def test_any_other_prompt_is_refused_by_name(prompt):
    with pytest.raises(ValueError, match=re.escape(repr(prompt)) + ".*not a question of the lab world"):
        parse_question(prompt)
