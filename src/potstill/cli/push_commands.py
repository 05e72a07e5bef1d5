"""The commands that copy a student or a run to other places, and back.

    potstill push runs/demo owner/name              the student to the Hugging Face hub
    potstill push runs/demo s3://bucket/demo --run  the whole run to an object store
    potstill pull s3://bucket/demo runs/demo        a folder of an object store to this machine

Heavy libraries are imported only when a command runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer


def add_push_commands(app: typer.Typer) -> None:
    """Add `push` and `pull` to an application."""
    app.command("push", epilog="Example: potstill push runs/demo owner/name --private")(_push)
    app.command("pull", epilog="Example: potstill pull s3://bucket/runs/demo runs/demo")(_pull)


def _push(
    run_dir: Annotated[
        Path, typer.Argument(metavar="RUN", help="Directory of a run, such as runs/demo.", show_default=False)
    ],
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="Repository on the hub, owner/name, or a folder of an object store, s3://bucket/path.",
            show_default=False,
        ),
    ],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="BRANCH", help="Branch for the commit, which is created if necessary.", show_default=False
        ),
    ] = None,
    accept_terms: Annotated[
        bool,
        typer.Option(
            "--accept-terms", help="Upload a student whose base has terms that you must pass on (Gemma, Llama)."
        ),
    ] = False,
    whole_run: Annotated[
        bool, typer.Option("--run", help="Upload the whole finished run, not only the student; to an object store.")
    ] = False,
) -> None:
    """Upload the student with its card to the Hugging Face hub.

    Or the student, or the whole run, to an object store. The hub needs HF_TOKEN. The same command continues an
    interrupted upload, and uploads only changed files.
    """
    from potstill import object_store
    from potstill.cli import check, push

    check.check_file_sizes(run_dir)
    if whole_run or object_store.is_url(name):
        push.refuse_hub_options(name, private=private, revision=revision)
        lines = push.push_to_store(run_dir, name, whole_run=whole_run)
    else:
        lines = push.push_student(run_dir, name, private=private, revision=revision, accept_terms=accept_terms)
    for line in lines:
        typer.echo(line)


def _pull(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="Folder of an object store: a run or a student.", show_default=False)
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="New folder.", show_default=False)],
) -> None:
    """Copy a run or a student from an object store to a new folder.

    The same command continues an interrupted copy. The folder appears when it is complete and verified.
    """
    from potstill.cli import push

    typer.echo(push.pull_folder(url, folder))
