"""`potstill push`: uploads the student of a run, with its card, to a model repository on the Hugging Face hub; or the
student, or the whole run, to an object store. `potstill pull` copies it back.

    potstill push runs/demo owner/name --private
    potstill push runs/demo s3://bucket/runs/demo --run

The licence of the base determines whether a student may be published. `--accept-terms` is required if the licence has
special terms, forbids changed copies, or is unknown.

    >>> needs_consent("apache-2.0"), needs_consent("gemma"), needs_consent("cc-by-nd-4.0"), needs_consent("unknown")
    (False, True, True, True)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from potstill import hub, object_store
from potstill.errors import UserError
from potstill.run_reader import open_run
from potstill.stages import recipe_stages
from potstill.storage import atomic, manifest, run_folder

# Licences that require everybody who publishes a model to pass on their terms -> address of the terms.
TERMS: Final = {
    "gemma": "https://ai.google.dev/gemma/terms",
    "llama2": "https://ai.meta.com/llama/license",
    "llama3": "https://www.llama.com/llama3/license",
    "llama3.1": "https://www.llama.com/llama3_1/license",
    "llama3.2": "https://www.llama.com/llama3_2/license",
    "llama3.3": "https://www.llama.com/llama3_3/license",
    "llama4": "https://www.llama.com/llama4/license",
}
LOCAL_SUFFIXES: Final = (".lock", atomic.PARTIAL_SUFFIX, atomic.RESUMED_SUFFIX)  # of files that belong to processes
NO_CHANGES: Final = ("cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0")
GEMMA_NOTICE: Final = (
    b"Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms\n"
    b"This model is a modification of it: see README.md.\n"
)


def needs_consent(licence: str) -> bool:
    """Whether a licence, as in a model card, may forbid or restrict the publication of a changed copy."""
    return licence in TERMS or licence in NO_CHANGES or licence in ("other", "unknown")


def push_student(run_dir: Path, name: str, *, private: bool, revision: str | None, accept_terms: bool) -> list[str]:
    """Upload the student's folder. Returns lines for the user.

    Raises UserError if the run has no student yet, if the name is not `owner/name`, if the base's licence needs consent,
    and as `hub.upload_model` does.
    """
    recipe, folder = open_run(run_dir).recipe, _student_folder(run_dir)
    if not hub.is_repository_name(name):
        what, hint = "this is not the name of a repository", "write owner/name"
        raise UserError(what, code="E-push-name", where="push", found=name, hint=hint)
    card = hub.read_model_card(folder / "README.md")
    licence = str(card.get("license", "unknown"))
    if recipe.student.model is not None and needs_consent(licence) and not accept_terms:
        raise _consent_error(licence, card, recipe.student.model)
    files: dict[str, Path | bytes] = {
        path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()
    }
    if licence == "gemma":
        files.setdefault("NOTICE", GEMMA_NOTICE)
    upload = hub.upload_model(name, files, f"Student of the run {recipe.name}", private=private, revision=revision)
    what = f"{len(files)} files" if upload.is_new else "nothing has changed"
    at_revision = f", revision: {upload.commit}" if revision is not None else ""
    lines = [f"{upload.url}: {what}, commit {upload.commit}", f"use it as student: {{model: {name}{at_revision}}}"]
    if licence in TERMS:
        lines.append(f"pass these terms on to everybody who gets the model: {TERMS[licence]}")
    return lines


def _student_folder(run_dir: Path) -> Path:
    folder = run_dir / "student"
    if not (folder / "config.json").is_file():
        hint = f"finish the run: potstill report {run_dir}"
        raise UserError("the run has no student yet", code="E-push-no-student", where=folder, hint=hint)
    return folder


def refuse_hub_options(name: str, *, private: bool, revision: str | None) -> None:
    """Raise UserError for options that only the hub has, and for `--run` with the name of a repository."""
    if not object_store.is_url(name):
        what, hint = "the hub takes students, not runs", "remove --run, or give the URL of an object store"
        raise UserError(what, code="E-push-run", where="--run", found=name, hint=hint)
    if private or revision is not None:
        what, hint = "an object store has neither private repositories nor branches", "remove --private and --revision"
        raise UserError(what, code="E-push-hub-option", where="push", found=name, hint=hint)


def push_to_store(run_dir: Path, url: str, *, whole_run: bool) -> list[str]:
    """Upload the student's folder, or the whole run, to an object store. Returns lines for the user.

    Nothing is published, so the licence of the base does not matter here. Raises UserError if there is no student, if the
    run is not finished, if another process works on it, and as `object_store.upload_folder` does.
    """
    recipe = open_run(run_dir).recipe
    if not whole_run:
        folder = _student_folder(run_dir)
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        upload = object_store.upload_folder(files, url, "push")
        return [_describe_upload(url, upload), f"use it as student: {{model: {url}}}"]
    if manifest.read_finished(run_dir / recipe_stages(recipe)[-1]) is None:
        what, hint = "the run is not finished, and a run in progress stays in its folder", f"potstill run {run_dir}"
        raise UserError(what, code="E-push-unfinished", where=run_dir, hint=hint)
    with run_folder.lock_run(run_dir):
        files = {
            path.relative_to(run_dir).as_posix(): path
            for path in run_dir.rglob("*")
            if path.is_file() and not (path.name.startswith(".") and path.name.endswith(LOCAL_SUFFIXES))
        }
        upload = object_store.upload_folder(files, url, "push")
    return [_describe_upload(url, upload), f"copy it to another machine: potstill pull {url} {run_dir}"]


def _describe_upload(url: str, upload: object_store.Upload) -> str:
    sent = f"{upload.sent} files sent, {upload.kept} already there" if upload.sent else "nothing has changed"
    return f"{url}: {sent}" + (f", {upload.removed} removed" if upload.removed else "")


def pull_folder(url: str, folder: Path) -> str:
    """Copy a folder of an object store to a new folder. Returns a line for the user."""
    if not object_store.is_url(url):
        what, hint = "this is not the URL of an object store", "write s3://BUCKET/PATH, or another scheme of fsspec"
        raise UserError(what, code="E-pull-url", where="pull", found=url, hint=hint)
    count, size = object_store.download_folder(url, folder, "pull")
    more = f"; potstill check {folder} compares them with the run" if (folder / "recipe.yaml").is_file() else ""
    return f"{folder}: {count} files, {size / 1e6:.1f} MB{more}"


def _consent_error(licence: str, card: dict[str, Any], base: str) -> UserError:
    stated = f"{base}: {card.get('license_name') or licence}"
    if licence == "unknown":
        what = "the licence of the base is unknown, so its student may not be publishable"
        hint = f"set the licence in report.licences ({{{Path(base).name}: LICENCE}}) and run the report again"
    elif licence in NO_CHANGES:
        what, hint = "the licence of the base forbids the publication of changed copies", "do not publish this student"
    else:
        what = "a student of this base may be published only with the terms of the base"
        hint = f"read {TERMS.get(licence) or card.get('license_link') or 'the licence of the base'}"
    hint += "; --accept-terms uploads it on your responsibility"
    return UserError(what, code="E-push-licence", where="push", found=stated, hint=hint)
