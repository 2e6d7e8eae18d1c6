"""A folder to a repository of the Hugging Face hub: private unless told otherwise, the token never kept."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loop.errors import AlignloopError, ConfigError


@dataclass(frozen=True)
class Repository:
    """Where an export goes. The token is read from the environment when it is needed, and held nowhere."""

    id: str
    kind: Literal["model", "dataset"]
    public: bool


def repository(uri: str, kind: Literal["model", "dataset"], public: bool) -> Repository:
    """The repository that `hf:org/name` means. Raises ConfigError for another form, or without HF_TOKEN."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    name = uri.removeprefix("hf:")
    try:
        if name.count("/") != 1:
            raise HFValidationError("it is org/name")
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(f"--to {uri}: not the name of a repository ({error})") from None
    _token()
    return Repository(name, kind, public)


def push(folder: Path, target: Repository, message: str) -> str:
    """Uploads all of `folder` in one commit and answers with the address.

    A repository that is there already keeps its visibility; one that is public is refused unless `public`.
    Raises AlignloopError in one line where the hub refuses or can't be reached.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import disable_progress_bars

    token = _token()
    api: Any = huggingface_hub.HfApi(token=token, library_name="alignloop")
    if not sys.stderr.isatty():
        disable_progress_bars()
    # What the hub's client is built on says that nobody answers by an error of its own (httpx or httpx2).
    unreachable: Any = HfHubHTTPError.__bases__[0]
    try:
        url = api.create_repo(target.id, repo_type=target.kind, private=not target.public, exist_ok=True)
        if not target.public and not api.repo_info(target.id, repo_type=target.kind).private:
            raise ConfigError(
                f"hf:{target.id} is there already and public; take another name, or --public if that is meant"
            )
        api.upload_folder(
            repo_id=target.id, repo_type=target.kind, folder_path=folder, commit_message=message
        )
    except (HfHubHTTPError, HFValidationError, unreachable, OSError, ValueError) as error:
        reason = " ".join(str(error).split()).replace(token, "…")[:300]
        raise AlignloopError(f"hf:{target.id}: the hub took nothing ({reason})") from None
    return str(url)


def _token() -> str:
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        raise ConfigError("--to hf:…: set HF_TOKEN to a token of yours that may write; it is never kept")
    return token
