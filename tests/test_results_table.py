"""The results table of the README is what the committed CSVs say."""

from rlhf import outputs

import pytest
import results_table


def readme() -> str:
    return (outputs.ROOT / "README.md").read_text(encoding="utf-8")


def test_results_table_is_not_stale(monkeypatch):
    monkeypatch.delenv("RLHF_OUTPUTS", raising=False)
    assert results_table.replaced(readme()) == readme(), "run `make results`"


def test_a_changed_number_in_the_readme_is_noticed(monkeypatch):
    monkeypatch.delenv("RLHF_OUTPUTS", raising=False)
    before, table = readme().split(results_table.BEGIN)
    changed = before + results_table.BEGIN + table.replace(".", ",", 1)
    assert results_table.replaced(changed) == readme()


def test_readme_without_its_markers_is_refused():
    with pytest.raises(ValueError, match="markers"):
        results_table.replaced("no table here")
