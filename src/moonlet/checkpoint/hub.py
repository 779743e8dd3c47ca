"""From what a user typed for MODEL to a folder on this machine."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from moonlet.checkpoint.untrusted import shown
from moonlet.config import load_config
from moonlet.errors import CheckpointError

# Data only: nothing that could be executed is ever fetched. Folders hold other copies of the weights.
PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tiktoken.model"]
FOLDERS = ["*/*"]
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def resolve(model: str) -> Path:
    """The folder or GGUF file `model`, or the folder with the download of the repository `org/name`.

    A download goes to the cache of huggingface_hub and is taken from there the next time. The weights
    come only when config.json describes a model of this family. Raises CheckpointError when there is
    no such folder, file or repository or it cannot be fetched, and ConfigError or NotSupportedError for
    the config.json of a repository.
    """
    try:
        path = Path(model).expanduser()
        exists = path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, no such user, a null character
        raise CheckpointError(f"{shown(model)} is not a path: {shown(str(error))}") from error
    if model and path.is_dir():
        return path
    if model.lower().endswith(".gguf"):
        if not exists:
            raise CheckpointError(f"there is no file {shown(model)} here")
        return path
    if model and exists:
        raise CheckpointError(f"{model} is a file; give the folder that it lies in")
    if not REPOSITORY.fullmatch(model):
        raise CheckpointError(
            f"'{shown(model)}' is neither a folder here nor a repository name like org/name"
        )
    from huggingface_hub import snapshot_download

    load_config(fetch_config(model))
    with _told_in_one_sentence(model):
        return Path(snapshot_download(model, allow_patterns=PATTERNS, ignore_patterns=FOLDERS))


def fetch_config(repository: str) -> Path:
    """config.json of the repository `org/name`, in the cache of huggingface_hub.

    Raises CheckpointError when it cannot be fetched.
    """
    from huggingface_hub import hf_hub_download

    with _told_in_one_sentence(repository):
        return Path(hf_hub_download(repository, "config.json"))


@contextmanager
def _told_in_one_sentence(repository: str) -> Iterator[None]:
    """What huggingface_hub raises, as a CheckpointError."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    # The bases bring the errors of the HTTP library, of which releases of the hub use different ones.
    refusals = (*HfHubHTTPError.__bases__, HFValidationError, OSError)
    try:
        yield
    except GatedRepoError as error:  # a kind of RepositoryNotFoundError, so it comes first
        reason = (
            "it asks you to accept its terms on huggingface.co and to log in with `hf auth login`"
        )
        raise CheckpointError(f"cannot download {repository}: {reason}") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"there is no folder {repository} here and no such public repository on huggingface.co"
        ) from error
    except LocalEntryNotFoundError as error:
        reason = "huggingface.co cannot be reached and there is no earlier download"
        raise CheckpointError(f"cannot get {repository}: {reason}; check the network") from error
    except EntryNotFoundError as error:
        reason = "it has no config.json, which every model here needs"
        raise CheckpointError(f"cannot use {repository}: {reason}") from error
    except cast(tuple[type[Exception], ...], refusals) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"cannot download {repository}: {reason}") from error
