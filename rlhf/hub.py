"""The Hugging Face Hub: whether it can be reached, and what is fetched from it."""

from pathlib import Path

import datasets
import httpx2
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import get_session

SAFE_FILES = ("*.safetensors", "*.json", "*.txt", "*.md")  # nothing that can hold code: no pickle, no script


def go_offline_without_connection(seconds: float = 5) -> None:
    """Tell the Hub's clients to use their cache alone if the Hub does not answer within `seconds`.

    Without this each of their requests is retried for up to a minute before it fails.
    """
    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=seconds)
    except (httpx2.HTTPError, OSError):
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = datasets.config.HF_DATASETS_OFFLINE = True


def fetch(name: str, revision: str | None = None) -> Path:
    """A folder with the files of a model repository: a local one as it is, or the Hub's in the Hub's own cache.

    Of a Hub repository only SAFE_FILES are fetched; what an interrupted download had is not fetched again. Raises
    ConnectionError where it can't be had.
    """
    if Path(name).is_dir():
        return Path(name)
    go_offline_without_connection()
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(SAFE_FILES)))
    except (HfHubHTTPError, httpx2.HTTPError, OSError, ValueError) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise ConnectionError(
            f"repository {name!r}{at} can't be fetched ({type(error).__name__}: {str(error).splitlines()[0][:200]}); "
            f"check its name and the connection, or give a local folder of the same layout."
        ) from error
