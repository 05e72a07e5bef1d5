"""Write the generated reference pages into docs/reference. Called by `make docs` before the site is built.

.venv/bin/python tools/docs/build.py
"""

from __future__ import annotations

import shutil

import cli_pages
import error_codes
import prompts_page
import python_api
import recipe_keys
import run_files
from names import REFERENCE

INDEX = """---
title: Reference
---

# Reference

These pages are generated from the code by `make docs`, so they describe exactly this version.

- [Recipe keys](recipe/index.md): every key with its type, default, unit and meaning.
- [Study keys](study.md): every key of a study file.
- [Command line](cli.md): every command, argument and option, and the exit codes.
- [Files of a run](files.md): what each file of a run's folder holds, with its columns.
- [Prompts](prompts.md): every prompt format, exactly as a model reads it.
- [Error codes](errors.md): every error that you can fix, with a hint.
- [Python API](api.md): signatures and docstrings.
"""


def main() -> None:
    shutil.rmtree(REFERENCE, ignore_errors=True)
    (REFERENCE / "recipe").mkdir(parents=True)
    pages = {"index": INDEX, "cli": cli_pages.page(), "errors": error_codes.page(), "api": python_api.page()}
    pages |= {"study": recipe_keys.study_page(), "files": run_files.page(), "prompts": prompts_page.page()}
    pages |= {f"recipe/{name}": text for name, text in recipe_keys.pages().items()}
    for name, text in pages.items():
        (REFERENCE / f"{name}.md").write_text(text, "utf-8")
    print(f"docs/reference: {len(pages)} pages")


if __name__ == "__main__":
    main()
