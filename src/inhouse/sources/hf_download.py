"""The child process of hf.py: `python -m inhouse.sources.hf_download URI FOLDER ANSWER`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from inhouse.core.errors import InhouseError, UserError
from inhouse.core.settings import settings
from inhouse.core.store import disk_errors
from inhouse.sources.hub import choose, parse, require_space


def main(uri: str, folder: Path, answer: Path) -> None:
    """Download, and write what was resolved, or the error, to `answer` as JSON."""
    try:
        with disk_errors(folder):
            said = download(uri, folder)
    except InhouseError as error:
        said = error.to_dict()
    answer.write_text(json.dumps(said), encoding="utf-8")


def download(uri: str, folder: Path) -> dict[str, Any]:
    """Fetch the chosen files of one commit into `folder`; a file that is there already is not fetched again."""
    import httpx
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import FileMetadataError, HfHubHTTPError, LocalEntryNotFoundError

    name = parse(uri)
    environment = settings()
    endpoint, token = environment.hf_endpoint, environment.hf_token
    kind = "dataset" if name.is_dataset else "model"
    try:
        api = HfApi(endpoint=endpoint, token=token)
        ask = api.dataset_info if name.is_dataset else api.model_info
        info = ask(name.repository, revision=name.revision, files_metadata=True)
        sizes = {s.rfilename: s.size or 0 for s in info.siblings or []}
        chosen = choose(uri, name, sizes)
        require_space(folder, sum(sizes[f] for f in chosen))
        for file in chosen:
            hf_hub_download(
                name.repository,
                file,
                repo_type=kind,
                revision=info.sha,
                local_dir=folder,
                endpoint=endpoint,
                token=token,
            )
    except HfHubHTTPError as error:
        raise explain(uri, error) from error
    except (httpx.HTTPError, LocalEntryNotFoundError, FileMetadataError, ConnectionError) as error:
        raise UserError("sources.network", uri=uri, reason=_first_line(error)) from error
    return {"repository": name.repository, "commit": info.sha, "files": chosen}


def explain(uri: str, error: Any) -> UserError:
    """A hub's refusal: no such repository or revision, not permitted, or something else."""
    status = None if error.response is None else error.response.status_code
    if status in (401, 403):
        return UserError("sources.not_permitted", uri=uri, token="HF_TOKEN")
    if status == 404:
        return UserError("sources.not_found", uri=uri)
    return UserError("sources.hub", uri=uri, reason=_first_line(error))


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
