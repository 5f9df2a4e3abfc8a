"""Fetching models and data sets from the Hugging Face Hub, or from a local folder of the same layout."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf import outputs

import httpx2
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import get_session
from safetensors import SafetensorError, safe_open

# Weights, settings, tokenizers, cards and data: nothing that can hold code, neither pickles nor scripts.
SAFE_FILES = ["*.safetensors", "*.json", "*.txt", "*.md", "*.model"]
ENDINGS, COMPRESSED = (".json", ".jsonl", ".csv", ".tsv", ".parquet"), (".gz", ".zst")  # of files with rows
DATA_FILES = [f"*{ending}" for ending in (*ENDINGS, *COMPRESSED, ".md")]
TWICE = "consolidated*"  # the same weights once more, in a form that transformers does not read


# No connection, no such repository, a proxy that needs a package or is none, an address that is none.
FAULTS = (HfHubHTTPError, httpx2.HTTPError, httpx2.InvalidURL, ImportError, OSError, ValueError)


@contextmanager
def as_one_line(what: str, advice: str) -> Iterator[None]:
    """Makes a ConnectionError of one line of whatever the clients of the Hub raise in the block."""
    try:
        yield
    except FAULTS as error:
        raise ConnectionError(f"{what} ({_line(error)}); {advice}") from error


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def hub_fault(seconds: float = 5) -> str:
    """Why the Hub does not answer within `seconds`; "" where it does. Its clients would retry for up to a minute."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=seconds)
    except FAULTS as error:
        return _line(error)
    return ""


def fetch(name: str, revision: str | None = None, kind: str = "model") -> Path:
    """The folder of a repository's files: a local one as it is, or the Hub's in the Hub's own cache.

    kind: "model" or "dataset". Of a Hub repository only SAFE_FILES or DATA_FILES are fetched; what an interrupted
    download had is not fetched again, and without a connection the cache is taken as it is. Raises ConnectionError
    where it can't be had.
    """
    if (local := outputs.from_checkout(name)).is_dir():
        return local
    patterns, fault = SAFE_FILES if kind == "model" else DATA_FILES, hub_fault()
    at = f" at revision {revision!r}" if revision else ""
    why = f"; {constants.ENDPOINT} can't be asked: {fault}" if fault else ""
    advice = f"check name and connection, or give a local folder laid out like it{why}."
    with as_one_line(f"{kind} repository {name!r}{at} can't be fetched", advice):
        chosen = {"revision": revision, "allow_patterns": patterns, "ignore_patterns": TWICE}
        return Path(snapshot_download(name, repo_type=kind, local_files_only=bool(fault), **chosen))


def fault_of(folder: Path) -> str:
    """Why no model is loaded from a folder; "" where nothing is wrong with it.

    Its weights are pickles, or it asks for code of its own or for files outside of it, or a file is missing or cut off.
    """
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        return (
            "has no .safetensors file; .bin and .pt files are pickles, which can run code when they are loaded. Where "
            "you trust them, load them with AutoModelForCausalLM.from_pretrained and save_pretrained to a new folder: "
            "that writes safetensors."
        )
    try:
        for file in sorted([*folder.glob("*config.json"), *folder.glob("*.index.json")]):
            content = json.loads(file.read_text(encoding="utf-8"))
            if file.name == "data_config.json" and isinstance(content, list):
                continue  # what an encoder of sentence-transformers was trained on; nobody reads it here
            if "auto_map" in content:
                return f"asks in {file.name} for code of its own (auto_map), which is not run; choose another model."
            for shard in dict.fromkeys(content.get("weight_map", {}).values()):
                if folder / Path(shard).name != folder / shard or shard == "..":
                    return f"names a file outside of it in {file.name}: {shard!r}; choose another model."
                if not (folder / shard).exists():
                    return f"lacks {shard}, which {file.name} names; make or fetch it anew."
        for file in weights:
            with safe_open(file, "pt"):  # reads the header, and compares it with the length of the file
                pass
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        return f"has a {file.name} that can't be read ({_line(error)}): it may be cut off; make or fetch it anew."
    return ""
