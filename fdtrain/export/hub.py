"""Uploads an export to the Hugging Face hub.

The token is huggingface_hub's own (``hf auth login``, or the variable ``HF_TOKEN``): it is neither an option, nor
written or printed here.
"""

import json
from pathlib import Path

from fdtrain.checkpoint.store import manifest_entry
from fdtrain.errors import UserError, excerpt, missing
from fdtrain.evaluation.load import EXPORT_FILE


def check(folder: Path, repository: str) -> dict[str, int]:
    """The files that :func:`push` uploads, and their bytes, without the network. Raises UserError: huggingface_hub is
    not installed, ``repository`` is no name of one, or the export is not whole."""
    try:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id
    except ImportError as error:
        raise UserError(f"--push: {missing('huggingface_hub')}") from error
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(f"--push: {repository!r} is not the name of a repository, such as owner/digits.") from error
    recorded = json.loads((folder / EXPORT_FILE).read_bytes())["files"]
    changed = [name for name, entry in recorded.items() if manifest_entry(folder / name) != entry]
    if changed:
        raise UserError(f"{folder / changed[0]} is not what was exported. Export again, and edit the card on the hub.")
    sizes = {name: entry["bytes"] for name, entry in recorded.items()}
    return {**sizes, EXPORT_FILE: (folder / EXPORT_FILE).stat().st_size}


def push(folder: Path, repository: str, names: list[str]) -> str:
    """Upload the named files in one commit; a repository that is not there is made, private. Returns its address.
    Raises UserError: the hub cannot be reached, or refuses."""
    from huggingface_hub import HfApi

    api = HfApi(library_name="fdtrain")
    try:
        address = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=names)
    except Exception as error:  # Those of its HTTP client, which differ between its versions, among them.
        raise UserError(
            f"--push: {repository} was not uploaded ({excerpt(error)}). {folder} is complete. Log in with "
            "`hf auth login` if the hub does not know you, or wait; then give the same command again."
        ) from error
    return str(address)
