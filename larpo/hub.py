"""Models by hub id or local folder, as a checked folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from larpo.errors import DataError, HubUnreachable
from larpo.model_folder import check_model_folder

_HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt")


def find_model(
    section: str, model: str, revision: str | None, *, own_code: bool = False, bundled: Sequence[str] = ()
) -> Path:
    """The folder that `model` names, downloaded if it is a hub id.

    `section` is the recipe's, for messages; `bundled` are names that need no hub.
    Python files of the hub's folder come only with `own_code`.

    Raises:
        DataError: it cannot be had, or is incomplete, with the cause and the next step.
    """
    path = Path(model).expanduser()
    if not path.is_dir() and model.startswith(("/", ".", "~")):
        raise DataError(f"{section}.model = {model!r}: there is no such folder in {Path.cwd()}; correct the path")
    path = path.resolve() if path.is_dir() else _downloaded(section, model, revision, own_code, bundled)
    check_model_folder(path)
    return path


def _downloaded(section: str, model: str, revision: str | None, own_code: bool, bundled: Sequence[str]) -> Path:
    """A hub model's snapshot in the hub's own cache."""
    import huggingface_hub

    others = f" or a bundled {section}: {', '.join(bundled)}" if bundled else ""
    patterns = [*_HUB_FILES, *(["*.py"] if own_code else [])]
    try:
        found = huggingface_hub.snapshot_download(model, revision=revision, allow_patterns=patterns)
    except (OSError, ValueError, huggingface_hub.errors.HTTPError) as error:
        unreachable = isinstance(error, huggingface_hub.errors.LocalEntryNotFoundError | ConnectionError)
        raise (HubUnreachable if unreachable else DataError)(
            f"{section}.model = {model!r}: cannot be had from the hub ({type(error).__name__}: {error}); check the id "
            f"and {section}.revision, log in for a gated model (hf auth login), or, without a network, give a local "
            f"folder{others}"
        ) from error
    return Path(found)
