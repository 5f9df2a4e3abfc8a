"""Foreign pairs: sentences of the corpus have none, whatever they say; broken ones have."""

from rlhf.lab import fluency
from rlhf.lab.corpus import documents, preference_table
from rlhf.profiles import load_profile

import numpy as np
import pytest

SMOKE = load_profile("smoke")
ROAST = "Spread the tofu slices across a metal tray."


def share(*responses):
    return fluency.foreign_pairs(SMOKE, list(responses)).tolist()


@pytest.fixture
def corpus_of(monkeypatch):
    return lambda *sentences: monkeypatch.setattr(fluency, "_known", lambda *_: fluency.word_pairs(sentences))


def test_share_of_sentences_with_a_foreign_pair_is_counted_by_hand(corpus_of):
    corpus_of("Heat the oven. Then wait.", "Heat the tray.")
    assert share("Heat the oven. Then wait. Heat the tray.", "Heat the wait. Then wait.") == [0, 0.5]
    assert share("Oven the heat.") == [1]


@pytest.mark.parametrize("broken", ["Heat the.", "The oven.", "Heat the oven the.", "Heat the house."])
def test_edges_and_new_words_make_a_sentence_foreign(corpus_of, broken):
    corpus_of("Heat the oven.")
    assert share(broken) == [1]


def test_objects_are_one_word_so_a_held_out_combination_is_not_foreign(corpus_of):
    corpus_of("To roast salmon fillets, wait.")
    assert share("To roast tofu slices, wait.", "to ROAST pork chops wait!") == [0, 0]


@pytest.mark.parametrize("text", ["", " \n", "..."])
def test_a_response_without_a_sentence_has_no_foreign_one(text):
    assert share(text) == [0]


def test_training_answers_that_are_not_cut_off_have_no_foreign_pair():
    pairs = preference_table("train", SMOKE.lab.pairs[0], SMOKE.seed)
    pairs = pairs[pairs.error != "cut_off"]
    assert not fluency.foreign_pairs(SMOKE, [*pairs.chosen, *pairs.rejected]).any()


def test_pretraining_text_has_no_foreign_pair():
    texts = documents(500, load_profile("lab").seed)
    assert not fluency.foreign_pairs(SMOKE, texts).any()


def test_references_of_the_test_split_have_hardly_any_at_the_lab_profile_and_shuffled_words_have():
    lab = load_profile("lab")
    chosen = list(preference_table("test", lab.lab.pairs[2], lab.seed).chosen)
    assert fluency.foreign_pairs(lab, chosen).mean() < 0.002
    shuffled = [" ".join(sorted(answer.split())) for answer in chosen[:50]]
    assert np.mean(fluency.foreign_pairs(lab, shuffled)) > 0.9
