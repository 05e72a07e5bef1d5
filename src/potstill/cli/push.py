"""`potstill push`: uploads the student of a run, with its card, to a model repository on the Hugging Face hub.

    potstill push runs/demo owner/name --private

The licence of the base determines whether a student may be published. `--accept-terms` is required if the licence has
special terms, forbids changed copies, or is unknown.

    >>> needs_consent("apache-2.0"), needs_consent("gemma"), needs_consent("cc-by-nd-4.0"), needs_consent("unknown")
    (False, True, True, True)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from potstill import hub
from potstill.errors import UserError
from potstill.run_reader import open_run

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
    recipe, folder = open_run(run_dir).recipe, run_dir / "student"
    if not (folder / "config.json").is_file():
        hint = f"finish the run: potstill report {run_dir}"
        raise UserError("the run has no student yet", code="E-push-no-student", where=folder, hint=hint)
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
