"""The models of a run, one row each, out of registry.toml: no other table of models stands anywhere."""

import tomllib
from pathlib import Path
from typing import NamedTuple


class Model(NamedTuple):
    """How a model is called, where it lies and who makes it; registry.toml says what each field is."""

    checkpoint: str
    label: str
    about: str
    notebook: str = ""
    colour: str = "#222222"
    marker: str = "o"
    settings: str | None = None
    command: str = ""


_TABLES = tomllib.loads((Path(__file__).parent / "registry.toml").read_text(encoding="utf-8"))
MODELS = {key: Model(**table) for key, table in _TABLES.items()}  # by the key of the CSVs
POLICIES = ("base", "sft_qlora", "sft_full", "ppo", "ppo_scratch")  # those that the evaluation compares
ALIGNED_CANDIDATES = ("ppo", "ppo_scratch")  # ppo_aligned is a copy of one of them
BY_COMMAND = tuple(key for key, model in MODELS.items() if model.command)  # not in every run
BY_CHECKPOINT = {model.checkpoint: key for key, model in MODELS.items()}
