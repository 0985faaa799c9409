"""A trained model to the Hub: the whole folder in one commit, so that a push that is cut off changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from hf_mtl.configuration import MultiTaskConfig
from hf_mtl.errors import ModelError, OutputError
from hf_mtl.model.weights import PICKLES

LEFT_OUT = ("checkpoint-*", "checkpoint-*/**", ".*", "_*", *(f"*{ending}" for ending in PICKLES))
"""What of a folder is never pushed: checkpoints, hidden files, and all that could hold a pickle."""


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str = "Upload model",
    token: str | None = None,
) -> str:
    """Push a folder that training or `save_pretrained` wrote: model, tokenizer, code, card and training arguments.

    Args:
        folder: the folder.
        repo_id: `owner/name` on the Hub; made where there is none.
        private: whether a new repository is private; as the owner's settings say where not given.
        revision: branch to push to, made where there is none; `main` where not given.
        message: message of the commit.
        token: access token; the one of `hf auth login` or `HF_TOKEN` where not given.

    Returns:
        Address of the commit.

    Raises:
        ModelError: the folder does not hold a model and its tokenizer.
        OutputError: the Hub cannot be reached or refuses; the repository is as it was before.
    """
    folder = Path(folder)
    _check_folder(folder)
    api = HfApi(token=token)
    try:
        name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name, folder_path=folder, commit_message=message, revision=revision, ignore_patterns=list(LEFT_OUT)
        )
    except (*_http_errors(), HFValidationError) as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise OutputError(
            f"the push did not succeed, and the repository is as it was before ({reason})",
            where=f"repository {repo_id!r}",
            mend="check the name, the network and `hf auth login`, then push again",
        ) from error
    return str(commit.commit_url)


def _check_folder(folder: Path) -> None:
    """Refuse a folder whose content nobody could load."""
    where = f"folder {str(folder)!r}"
    if not folder.is_dir():
        raise ModelError("there is no such folder", where=where, mend="name the folder of a trained model")
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(
            "it has no config.json that can be read", where=where, mend="name the folder of a trained model"
        ) from error
    if kind != MultiTaskConfig.model_type:
        raise ModelError(f"its model_type is {kind!r}", where=where, mend="name a model trained with hf-mtl train")
    for pattern, part in (("*.safetensors", "weights in safetensors"), ("tokenizer_config.json", "tokenizer")):
        if not any(folder.glob(pattern)):
            raise ModelError(f"it has no {part}", where=where, mend="save the model and its tokenizer there first")


def _http_errors() -> tuple[type[Exception], ...]:
    """Return the errors of the client and of the HTTP library under it, whichever that is."""
    return tuple(kind for kind in HfHubHTTPError.__mro__ if issubclass(kind, Exception) and kind is not Exception)
