"""`potstill data`: lists the sets that can be fetched, and fetches sets, with their licences."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import typer

from potstill.cli.tables import print_wrapped
from potstill.data import public_files
from potstill.data.public_files import PublicSet
from potstill.errors import UserError, suggest

NO_LICENCE = "none stated"


def run(names: Sequence[str], to: Path | None, replace: bool) -> None:
    """Fetch the named sets; without a name, list all sets. Raises UserError for an unknown name, before it fetches."""
    sets = public_files.read_public_sets()
    for name in names:
        if name not in sets:
            hint = f"{suggest(name, sets)}use one of {', '.join(sets)}; sets of the Hugging Face hub are named in the recipe"
            raise UserError("no public set has this name", code="E-data-unknown-set", where=repr(name), hint=hint)
    set_folder = os.environ.get("POTSTILL_DATA")
    folder = to or (Path(set_folder) if set_folder else None)
    if not names:
        _print_list(list(sets.values()), folder)
        return
    if folder is None:
        hint = "export POTSTILL_DATA=FOLDER, which later commands also use, or add --to FOLDER"
        raise UserError("no data folder is set", code="E-data-no-folder", where="potstill data", hint=hint)
    for name in dict.fromkeys(names):
        _fetch_set(sets[name], folder, replace)
    if not set_folder or Path(set_folder).resolve() != folder.resolve():
        typer.echo(f"export POTSTILL_DATA={folder.resolve()}  # so that recipes find these files")


def _fetch_set(public: PublicSet, folder: Path, replace: bool) -> None:
    print_wrapped([f"{public.name}: {public.title}"])
    print_wrapped(
        [f"  licence: {public.licence or NO_LICENCE}{_nc_note(public)}", f"  from {', '.join(public.sources)}"]
    )
    fetched = public_files.fetch_files(public.name, public.files, folder, replace=replace)
    typer.echo(f"  {len(fetched)} of {len(public.files)} files fetched" if fetched else "  all files were here")
    for file in public.files:
        if not file.repository and public_files.find_state(file, folder) == "missing":
            missing = (
                f"  not fetched: {file.path} ({file.optional}). No public place of it is known. If you have it, place"
            )
            print_wrapped([f"{missing} it at {folder / file.path}, sha256 {file.sha256}"])


def _nc_note(public: PublicSet) -> str:
    return ". NonCommercial: the authors allow no commercial use of this set" if public.noncommercial else ""


def _print_list(sets: Sequence[PublicSet], folder: Path | None) -> None:
    typer.echo(f"{'name':14}{'here':18}{'size':>8}  licence")
    for public in sets:
        licence = (public.licence or NO_LICENCE) + (", NonCommercial" if public.noncommercial else "")
        size = f"{public.size / 1e6:.1f} MB" if public.size >= 1e5 else f"{public.size / 1e3:.0f} kB"
        typer.echo(f"{public.name:14}{_describe_state(public, folder):18}{size:>8}  {licence}")
        print_wrapped([f"  {public.title}", f"  {', '.join(public.sources)}"])
    typer.echo(f"\ndata folder: {folder or 'none; set POTSTILL_DATA, or add --to FOLDER'}")
    typer.echo("to fetch sets: potstill data NAME ...")


def _describe_state(public: PublicSet, folder: Path | None) -> str:
    if folder is None:
        return "-"
    needed = [file for file in public.files if not file.optional]
    states = [public_files.find_state(file, folder) for file in needed]
    if "other content" in states:
        return "other content"
    here = states.count("here")
    return "yes" if here == len(needed) else "no" if not here else f"{here} of {len(needed)} files"
