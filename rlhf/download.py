"""Fetching models and data sets from the Hugging Face Hub, or from a local folder of the same layout."""

from pathlib import Path

import httpx2
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import get_session

# Weights, settings, tokenizers, cards and data: nothing that can hold code, neither pickles nor scripts.
SAFE_FILES = ["*.safetensors", "*.json", "*.txt", "*.md", "*.model"]
DATA_FILES = ["*.parquet", "*.json", "*.jsonl", "*.csv", "*.tsv", "*.gz", "*.md"]


def hub_is_reachable(seconds: float = 5) -> bool:
    """Whether the Hub answers within `seconds`. Its clients would retry each request for up to a minute."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=seconds)
    except (httpx2.HTTPError, OSError):
        return False
    return True


def fetch(name: str, revision: str | None = None, kind: str = "model") -> Path:
    """The folder of a repository's files: a local one as it is, or the Hub's in the Hub's own cache.

    kind: "model" or "dataset". Of a Hub repository only SAFE_FILES or DATA_FILES are fetched; what an interrupted
    download had is not fetched again, and without a connection the cache is taken as it is. Raises ConnectionError
    where it can't be had.
    """
    if Path(name).is_dir():
        return Path(name)
    patterns = SAFE_FILES if kind == "model" else DATA_FILES
    options = {"revision": revision, "allow_patterns": patterns, "local_files_only": not hub_is_reachable()}
    try:
        return Path(snapshot_download(name, repo_type=kind, **options))
    except (HfHubHTTPError, httpx2.HTTPError, OSError, ValueError) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise ConnectionError(
            f"{kind} repository {name!r}{at} can't be fetched ({type(error).__name__}: "
            f"{str(error).splitlines()[0][:200]}); check name and connection, or give a local folder laid out like it."
        ) from error
