"""Checkpoints to and from the Hugging Face hub, or a folder in its place."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vla_opt._directories import atomic_directory
from vla_opt.evaluation.contract import Checkpoint, open_checkpoint
from vla_opt.sharing.model_card import CARD

if TYPE_CHECKING:
    from vla_opt.evaluation.inference import CheckpointPolicy


class ShareError(RuntimeError):
    """A checkpoint cannot be published or fetched."""


class Hub(Protocol):
    """What is asked of `huggingface_hub.HfApi`."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any:
        """Make a repository, if it is not there."""

    def upload_folder(
        self, *, repo_id: str, folder_path: str, commit_message: str, revision: str | None
    ) -> Any:
        """Put a folder's files there in one commit."""


def export(checkpoint: Checkpoint, folder: Path) -> Path:
    """Copy what a hub would get into a new folder: everything `from_pretrained` reads.

    Raises:
        ShareError: It has no card.
        FileExistsError: The folder exists and is not empty.
    """
    _require_card(checkpoint)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"'{folder}' exists and is not empty: give another folder.")
    with atomic_directory(folder) as made:
        shutil.copytree(checkpoint.folder, made, dirs_exist_ok=True)
    return folder


def push_to_hub(
    checkpoint: Checkpoint,
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    hub: Hub | None = None,
) -> str:
    """Publish a checkpoint in lerobot's layout: its files lie at the repository's top.

    Args:
        checkpoint: With a card, see `write_card`.
        repo_id: "user/name".
        private: Whether a new repository is.
        revision: Branch; the main one if not given.
        hub: `HfApi()` if not given; it finds the token of `hf auth login`.

    Returns:
        What the hub says of the commit.

    Raises:
        ShareError: No card, or the hub cannot be reached or refuses.
    """
    _require_card(checkpoint)
    if repo_id.count("/") != 1:
        raise ShareError(f"'{repo_id}' is no name of a repository: expected user/name.")
    if hub is None:
        from huggingface_hub import HfApi

        hub = HfApi()
    try:
        hub.create_repo(repo_id, private=private, exist_ok=True)
        commit = hub.upload_folder(
            repo_id=repo_id,
            folder_path=str(checkpoint.folder),
            commit_message=f"Checkpoint {checkpoint.sha256}",
            revision=revision,
        )
    except Exception as error:  # hub, network and token errors have many classes
        raise ShareError(
            f"{repo_id} cannot be written: {error}. Log in with `hf auth login`; without a "
            "network, export to a folder: vla-opt push CHECKPOINT --to=DIR."
        ) from error
    return str(commit)


def fetch(name: str, *, revision: str | None = None) -> Path:
    """The folder of a checkpoint given by path or hub name; downloads it if it is not here.

    Raises:
        ShareError: It is neither.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision))
    except Exception as error:
        raise ShareError(
            f"no checkpoint '{name}': it is neither a folder here nor in the hub's cache, and "
            f"cannot be downloaded ({error})."
        ) from error


def from_pretrained(
    name: str, *, revision: str | None = None, device: str = "cpu"
) -> CheckpointPolicy:
    """A policy that answers observations, by path or hub name; every weight is checked.

    Raises:
        ShareError: There is no such checkpoint.
        CheckpointError: It is damaged.
        PolicyError: A weight was not loaded.
    """
    from vla_opt.evaluation.inference import CheckpointPolicy

    return CheckpointPolicy(open_checkpoint(fetch(name, revision=revision)).folder, device=device)


def _require_card(checkpoint: Checkpoint) -> None:
    if not (checkpoint.folder / CARD).is_file():
        raise ShareError(
            f"{checkpoint.folder} has no {CARD}: nobody would know what it is. Write it first: "
            f"vla-opt card {checkpoint.folder}"
        )
