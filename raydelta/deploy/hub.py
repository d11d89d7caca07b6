"""``raydelta export --push-to-hub``: an exported folder as a repository on the Hugging Face hub."""

from pathlib import Path

from raydelta.errors import UserError


def check_hub(repository: str) -> None:
    """Look whether a push can work, before the export takes minutes. Asks nobody.

    Raises:
        UserError: the extra is missing, the name is no name of a repository, or there is no token.
    """
    try:
        from huggingface_hub import get_token
        from huggingface_hub.utils import HFValidationError, validate_repo_id
    except ImportError as error:
        raise UserError("--push-to-hub needs huggingface_hub: pip install 'raydelta[hub]'") from error
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(f"--push-to-hub {repository}: expected OWNER/NAME: {error}") from error
    if repository.count("/") != 1:
        raise UserError(f"--push-to-hub {repository}: expected OWNER/NAME")
    if get_token() is None:
        raise UserError("--push-to-hub: no token: set HF_TOKEN, or log in with: hf auth login")


def push(folder: Path, repository: str) -> str:
    """Upload an exported folder, its card as the repository's, in one commit.

    A new repository is private: whether the weights may be public depends on the licences of the data.

    Returns:
        the address of the commit.

    Raises:
        UserError: the hub cannot be reached, or refuses; the folder stays.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        commit = api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Model exported by raydelta")
    except (HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{repository}: not pushed: {reason} The export lies in {folder}: hf upload {repository} {folder}"
        ) from error
    return str(commit.commit_url)
