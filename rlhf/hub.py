"""The Hugging Face Hub: whether it can be reached."""

import datasets
import httpx2
from huggingface_hub import constants
from huggingface_hub.utils import get_session


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
