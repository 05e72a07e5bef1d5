"""Models and files of the Hugging Face hub, through huggingface_hub: its cache, token, offline mode and resumed downloads;
the metadata of model cards.

    >>> is_hub_name("HuggingFaceTB/SmolLM2-135M-Instruct"), is_hub_name("models/student/step-72"), is_hub_name("/models/a")
    (True, False, False)

The environment variables of huggingface_hub apply: HF_TOKEN, HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE. A branch or a tag is
resolved to a commit before anything is downloaded, and the commit is returned, so that a caller can record it. Without a
connection, an error is raised; the cached commit is used only with HF_HUB_OFFLINE=1.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from potstill.errors import UserError

RESERVED_OWNERS: Final = ("datasets", "models", "spaces")  # pages of the hub, and common names of local folders
HUB_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
COMMIT: Final = re.compile(r"[0-9a-f]{40}")
# The files that a model needs. Never pickled weights, and no copies of the weights for other tools.
MODEL_FILES: Final = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.model",
    "*.tiktoken",
    "*.txt",
    "*.py",
    "README.md",
    "LICENSE*",
)
OTHER_COPIES: Final = ("onnx/*", "openvino/*", "*/*.safetensors", "original/*", "runs/*", "checkpoint-*/*")


# The licences of model cards: docs/hub/repositories-licenses.md of huggingface/hub-docs, August 2026, without "other" and
# "unknown". huggingface_hub does not have this list.
_LICENCE_NAMES: Final = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
    openmdw-1.0 openmdw-1.1 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma
"""
LICENCES: Final = frozenset(_LICENCE_NAMES.split())


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A downloaded repository: its folder in the cache, and the 40 hexadecimal digits of its commit."""

    folder: Path
    commit: str


def is_hub_name(text: str) -> bool:
    """Whether a text has the form `owner/name`.

    A relative path of two parts has the same form, so callers look for a folder first.
    """
    return HUB_NAME.fullmatch(text) is not None and text.partition("/")[0] not in RESERVED_OWNERS


def is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def download_model(name: str, revision: str | None, *, key: str) -> Snapshot:
    """Download the files of a model (safetensors, configuration, tokenizer), or find them in the cache.

    name      `owner/name`
    revision  branch, tag or commit; None for the default branch
    key       recipe key, for messages

    Raises UserError if the repository or the revision does not exist, without a network, and if access is refused.
    """
    import huggingface_hub as library

    arguments: dict[str, Any] = {
        "repo_id": name,
        "allow_patterns": list(MODEL_FILES),
        "ignore_patterns": list(OTHER_COPIES),
        "endpoint": endpoint(),
    }
    with _hub_errors(key, name, revision):
        if is_offline() or (revision is not None and COMMIT.fullmatch(revision)):
            try:
                return _snapshot(library.snapshot_download(**arguments, revision=revision, local_files_only=True))
            except library.errors.LocalEntryNotFoundError:
                if is_offline():
                    raise
        # Without this request, huggingface_hub would use a cached copy of any age if the hub cannot be reached.
        commit = library.HfApi(endpoint=endpoint()).model_info(name, revision=revision).sha
        snapshot = _snapshot(library.snapshot_download(**arguments, revision=revision))
    if snapshot.commit != commit:
        raise UserError(
            "the repository changed during the download",
            code="E-hub-changed",
            where=key,
            found=f"{name}: commit {commit}, then {snapshot.commit}",
            hint="run again, or give a commit as the revision",
        )
    return snapshot


def download_model_without_weights(name: str, revision: str | None, *, key: str, cache: Path) -> tuple[Snapshot, int]:
    """Download the configuration and the tokenizer of a model. Also returns the size of its missing weights in bytes.

    If the hub's cache has the whole model, it is used, and the size is 0.

    cache  another cache than the hub's: a later `download_model` must not take the folder for a whole model

    Raises UserError as `download_model` does, and if the repository has no safetensors weights.
    """
    import huggingface_hub as library

    with _hub_errors(key, name, revision):
        api = library.HfApi(endpoint=endpoint())
        commit = api.model_info(name, revision=revision).sha
        tree = api.list_repo_tree(name, revision=commit)
        weights = {
            entry.path: entry.size
            for entry in tree
            if isinstance(entry, library.RepoFile) and entry.path.endswith(".safetensors")
        }
        arguments: dict[str, Any] = {"ignore_patterns": list(OTHER_COPIES), "endpoint": endpoint(), "revision": commit}
        with contextlib.suppress(library.errors.LocalEntryNotFoundError):
            whole = _snapshot(library.snapshot_download(name, local_files_only=True, **arguments))
            if weights and all((whole.folder / path).is_file() for path in weights):
                return whole, 0
        patterns = [pattern for pattern in MODEL_FILES if pattern != "*.safetensors"]
        folder = library.snapshot_download(name, allow_patterns=patterns, cache_dir=cache, **arguments)
    if not weights:
        what, hint = (
            "the repository has no safetensors weights",
            "name a model with *.safetensors, or convert its weights",
        )
        raise UserError(what, code="E-hub-no-weights", where=key, found=name, hint=hint)
    return _snapshot(folder), sum(weights.values())


def download_dataset_file(name: str, file: str, commit: str, *, key: str) -> Path:
    """The cached path of a file of a data set's repository at a commit. Raises UserError as `download_model` does."""
    return _download_file("dataset", name, file, commit, key)


def download_model_file(name: str, file: str, commit: str, *, key: str) -> Path:
    """The cached path of a file of a model's repository at a commit. Raises UserError as `download_model` does."""
    return _download_file("model", name, file, commit, key)


def _download_file(kind: str, name: str, file: str, commit: str, key: str) -> Path:
    import huggingface_hub as library

    with _hub_errors(key, name, commit, file):
        path = library.hf_hub_download(
            name, file, repo_type=kind, revision=commit, endpoint=endpoint(), local_files_only=is_offline()
        )
        return Path(path)


def _snapshot(folder: str) -> Snapshot:
    return Snapshot(Path(folder), Path(folder).name)


@contextlib.contextmanager
def _hub_errors(key: str, name: str, revision: str | None, file: str = "") -> Iterator[None]:
    """Convert errors of huggingface_hub to UserError."""
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except (errors.HfHubHTTPError, errors.EntryNotFoundError, errors.OfflineModeIsEnabled, httpx2.HTTPError) as error:
        code, what, hint = next((words for kinds, *words in _errors_table() if isinstance(error, kinds)), OTHER_ERROR)
        if code == "E-hub-offline" and not is_offline():  # the client also says so when it finds no network
            code, what, hint = OTHER_ERROR
        first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        found = f"{name}{f'@{revision}' if revision else ''} {file}: {first_line}"[:300]
        raise UserError(
            what, code=code, where=key, found=found, hint=hint.format(url=f"{endpoint()}/{name}")
        ) from error


OTHER_ERROR: Final = (
    "E-hub-failed",
    "the hub cannot be reached, or it refuses the request",
    "run again: a download resumes; or download the files with another tool and name the folder",
)


def _errors_table() -> list[tuple[Any, str, str, str]]:
    """Error classes of huggingface_hub, subclasses first, with code, message and hint."""
    from huggingface_hub import errors

    return [
        (
            errors.GatedRepoError,
            "E-hub-gated",
            "access to this repository must be granted",
            "accept its terms at {url}, then set HF_TOKEN (or run `hf auth login`)",
        ),
        (
            errors.RevisionNotFoundError,
            "E-hub-no-revision",
            "the repository has no such revision",
            "give a branch, a tag or a commit of {url}",
        ),
        (
            errors.RepositoryNotFoundError,
            "E-hub-no-repository",
            "neither a folder nor a repository on the hub has this name",
            "check the name; a private repository needs HF_TOKEN",
        ),
        (
            errors.RemoteEntryNotFoundError,
            "E-hub-no-file",
            "the repository has no such file",
            "check the path of the file at {url}",
        ),
        (
            (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled),
            "E-hub-offline",
            "the files are not in the cache, and HF_HUB_OFFLINE forbids downloads",
            "run once without HF_HUB_OFFLINE=1, or give a folder",
        ),
    ]


# Uploads


@dataclass(frozen=True, slots=True)
class Upload:
    """The result of an upload: address, commit, and whether there was a new commit."""

    url: str
    commit: str
    is_new: bool


def upload_model(
    name: str, files: Mapping[str, Path | bytes], message: str, *, private: bool = False, revision: str | None = None
) -> Upload:
    """Create the model repository `owner/name` if it does not exist, and upload all files in one commit.

    files     path in the repository -> file or content. Other weight files in the repository are deleted
    private   whether a new repository is private; an existing repository keeps its visibility
    revision  branch, which is created if necessary; None: the default branch

    Large files that the hub already has are not sent again, so an interrupted upload continues. Without changes, there is
    no commit. Raises UserError without a token, offline, and if the hub refuses the upload.
    """
    import huggingface_hub as library

    key = "push"
    if is_offline():
        what, hint = "HF_HUB_OFFLINE forbids an upload", "run without HF_HUB_OFFLINE=1"
        raise UserError(what, code="E-hub-offline-upload", where=key, found=name, hint=hint)
    if library.get_token() is None:
        raise UserError(
            "an upload needs a token for the hub",
            code="E-hub-no-token",
            where=key,
            found=name,
            hint=f"set HF_TOKEN to a token that may write (or run `hf auth login`); make one at {endpoint()}/settings/tokens",
        )
    api = library.HfApi(endpoint=endpoint())
    with _hub_errors(key, name, revision), _write_errors(key, name):
        api.create_repo(name, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        before = api.model_info(name, revision=revision)
        stale = [
            sibling.rfilename
            for sibling in before.siblings or ()
            if re.fullmatch(STALE_WEIGHTS, sibling.rfilename) and sibling.rfilename not in files
        ]
        operations: list[Any] = [library.CommitOperationDelete(path) for path in stale]
        operations += [library.CommitOperationAdd(path, content) for path, content in sorted(files.items())]
        commit = api.create_commit(name, operations, commit_message=message, revision=revision)
    return Upload(f"{endpoint()}/{name}", commit.oid, commit.oid != before.sha)


STALE_WEIGHTS: Final = r"[^/]*\.safetensors(\.index\.json)?"


@contextlib.contextmanager
def _write_errors(key: str, name: str) -> Iterator[None]:
    """Convert the error of a refused or interrupted upload to UserError."""
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except errors.RevisionNotFoundError:
        raise
    except (
        errors.HfHubHTTPError,
        httpx2.HTTPError,
        ConnectionError,
    ) as error:  # the storage client raises ConnectionError
        what, code = "the hub cannot be reached, or it refuses the upload", "E-hub-upload-failed"
        hint = "run again: files that the hub already has are not sent again"
        if isinstance(error, errors.HfHubHTTPError) and error.response.status_code in (401, 403):
            what, code = "the hub does not let this token write here", "E-hub-no-write"
            hint = "use a token with the right to write to this owner's repositories"
        first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(what, code=code, where=key, found=f"{name}: {first_line}"[:300], hint=hint) from error


# Model cards


@dataclass(frozen=True, slots=True)
class CardScore:
    """An accuracy for the metadata of a model card.

    percent   accuracy in percent
    settings  settings of the evaluation
    hub_id    name of the data set on the hub, if it is there
    """

    dataset: str
    percent: float
    name: str
    settings: Mapping[str, Any]
    hub_id: str | None = None


def is_repository_name(text: str) -> bool:
    """Whether huggingface_hub accepts the text as a repository name `owner/name`."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return "/" in text


def licence_fields(licence: str | None, link: str | None = None) -> dict[str, str]:
    """The metadata fields of a model card for a licence.

    >>> licence_fields("Apache-2.0"), licence_fields("CC BY-NC 4.0"), licence_fields(None)
    ({'license': 'apache-2.0'}, {'license': 'cc-by-nc-4.0'}, {'license': 'unknown'})
    >>> licence_fields("Our Terms, v2")
    {'license': 'other', 'license_name': 'our-terms-v2'}
    """
    if licence is None or licence.lower() == "unknown":
        return {"license": "unknown"}
    name = "-".join(licence.lower().split())
    if name in LICENCES:
        return {"license": name}
    fields = {
        "license": "other",
        "license_name": re.sub(r"[^a-z0-9.+-]+", "-", name.replace(",", "")).strip("-") or "other",
    }
    return fields | ({"license_link": link} if link else {})


def read_model_card(path: Path) -> dict[str, Any]:
    """The metadata of a model card; empty for a file without metadata."""
    from huggingface_hub import ModelCard

    try:
        text = path.read_text("utf-8")
        if not text.startswith("---"):  # the library would print a warning
            return {}
        return ModelCard(text, ignore_metadata_errors=True).data.to_dict()
    except Exception:  # errors of YAML and others: people write cards by hand, and no result depends on them
        return {}


def write_model_card(metadata: Mapping[str, Any], name: str, scores: Sequence[CardScore], task: str, text: str) -> str:
    """A model card: the metadata between two lines `---`, then the text.

    metadata  fields of `huggingface_hub.ModelCardData`
    name      name of the model in the table of results
    task      pipeline_tag
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    results = [
        EvalResult(
            task_type=task,
            dataset_type=score.hub_id or score.dataset,
            dataset_name=score.dataset,
            dataset_split="test",
            metric_type="accuracy",
            metric_value=score.percent,
            metric_name=score.name,
            metric_args=dict(score.settings),
        )
        for score in scores
    ]
    table = {"model_name": name, "eval_results": results} if results else {}
    data = ModelCardData(**metadata, pipeline_tag=task, **table)
    card = f"---\n{data.to_yaml()}\n---\n\n{text}"
    ModelCard(card)  # raises ValueError for metadata that the library cannot read
    return card
