"""Accuracy of reward models on parts of the pairs: which parts, which slices."""

from rlhf.studies import common, data_size

import numpy as np
import pytest
from small_study import small_proxy, small_study


@pytest.fixture
def study(profile_with_sft):
    return small_study(profile_with_sft)


def test_each_part_of_the_pairs_has_a_model_and_its_accuracy_by_kind_of_error(study, monkeypatch):
    proxy = small_proxy(study, monkeypatch)
    trained = {}
    monkeypatch.setattr(study, "train_reward_model", lambda name, pairs: trained.update({name: len(pairs)}))
    table = data_size.run(study)["data_size.csv"]
    assert trained == {name: round(share * 140) for name, share in common.SHARES.items()}
    assert list(table.columns) == ["pairs", "share", "slice", "accuracy", "ci_low", "ci_high", "n"]
    assert table.share.unique().tolist() == [1 / 8, 1 / 4, 1 / 2, 1.0]
    assert table.query("share == 1").pairs.unique() == [140]
    assert set(table.slice) == {"all", *study.error_kinds}
    overall = table.query("slice == 'all'")
    assert overall.accuracy.tolist() == pytest.approx([proxy.correct().mean()] * 4)  # the same model each time
    kind = study.error_kinds[0]
    expected = proxy.correct()[study.error_kinds == kind].mean()
    np.testing.assert_allclose(table[table.slice == kind].accuracy, expected)
