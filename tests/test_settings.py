"""Bad values of every variable of docs/settings.md: the message has the variable, the value and what is allowed."""

import re

from rlhf import outputs, runtime
from rlhf.profiles import load_profile, set_up

import pytest

NUMBER = r"is no whole number from {} to \d+; set it to one or unset it"
PATH = "no such file or folder; give an existing path or a Hub name"
BAD = {
    "RLHF_PROFILE": (["huge", "LAB", "lab,smoke", "../lab"], r"is no profile; choose one of smoke, lab, gpt2, larger"),
    "RLHF_MODEL": (["./none", "~/none", "/none", "a/b/c"], PATH),
    "RLHF_DATASET": (["./none", "none.csv", "none.jsonl"], PATH),
    "RLHF_PUBLISHED": (["./none", "~/none"], PATH),
    "RLHF_SST2": (["./none", "~/none"], PATH),
    "RLHF_ALPACA": (["./none", "none.json"], PATH),
    "RLHF_ENCODER": (["./none", "~/none"], PATH),
    "RLHF_MAX_STEPS": (["0", "-1", "1.5", "ten", "1e3", "²", "٣", "9" * 30], NUMBER.format(1)),
    "RLHF_SEED": (["-1", "1.5", "one", "²", str(2**32), "9" * 5000], NUMBER.format(0)),
    "RLHF_THREADS": (["0", "-2", "all", "4096"], NUMBER.format(1)),
    "RLHF_MEMORY_GB": (["0", "-1", "16GB", "nan", "inf"], "is no positive number; give gigabytes, such as 16"),
    "RLHF_CHECKPOINT_SECONDS": (["-1", "3min", "nan", "inf"], "is no positive number; give seconds, such as 180, or 0"),
}
PROFILES = {"RLHF_SST2": "sentiment", "RLHF_ALPACA": "alpaca", "RLHF_ENCODER": "alpaca", "RLHF_PROFILE": None}


@pytest.mark.parametrize(
    ("variable", "value"), [(name, value) for name, (values, _) in BAD.items() for value in values]
)
def test_bad_value_is_refused_with_variable_value_and_what_is_allowed(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=rf"^{variable}={re.escape(repr(value))}:? {BAD[variable][1]}"):
        load_profile(PROFILES.get(variable, "gpt2"))
        runtime.memory_bytes()
        runtime.checkpoint_seconds()


def test_outputs_that_are_no_folder_are_refused(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RLHF_OUTPUTS", str(tmp_path / "file"))
    with pytest.raises(PermissionError, match=rf"can't write to {tmp_path}/file.*set RLHF_OUTPUTS to another folder"):
        set_up(load_profile("smoke"))


def test_every_variable_of_the_documentation_is_tested_here_or_by_name_elsewhere():
    text = (outputs.ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    named = set(re.findall(r"RLHF_[A-Z0-9_]+", text))
    assert named - {"RLHF_OUTPUTS", "RLHF_TEST_DATA"} == set(BAD)  # the first above, the second is of the tests
