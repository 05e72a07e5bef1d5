"""The optimizer's state where it is spread over processes: every process writes its own part, and any number reads it.

    engine/shard-00001-model-00001-of-00001.safetensors    of the first process
    engine/shard-00002-model-00001-of-00001.safetensors    of the second
    engine/digests.json                                    of every file, and last

Written and cut anew by torch.distributed.checkpoint in its safetensors form, which holds nothing but tensors: its own
form has a pickle, which could run code when it is read.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from torch import Tensor, distributed
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from potstill import files
from potstill.errors import UserError
from potstill.training.optimizer import Optimizer, named, other_model, restore, state
from potstill.training.team import first, gather

DIGESTS: Final = "digests.json"
_OWN: Final = "shard-{:05d}-*.safetensors"  # of a process, counted from 1


def save_shards(optimizer: Optimizer, folder: Path, *, parameters: bool = False) -> None:
    """`state` into a new folder; every process takes part. `parameters` as there."""
    # In the order of names: what was restored stands in another order than what grew.
    tensors = {name: value.detach() for name, value in sorted(state(optimizer, parameters=parameters).items())}
    with _quiet():
        save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    own = sorted(folder.glob(_OWN.format((distributed.get_rank() if distributed.is_initialized() else 0) + 1)))
    digests = gather({path.name: files.digest(path) for path in own})
    if first():
        files.write_json(folder / DIGESTS, {name: one for each in digests for name, one in sorted(each.items())})


def restore_shards(optimizer: Optimizer, folder: Path) -> None:
    """The reverse of `save_shards`, by as many processes as there are now; every one takes part.

    Raises UserError where a file is not the one that was written, or belongs to another model.
    """
    _check(folder)
    reader = HuggingFaceStorageReader(str(folder))
    try:
        found = reader.read_metadata().state_dict_metadata
        by_name = dict(named(optimizer))
        tensors: dict[str, Tensor] = {}
        for key, stored in found.items():
            assert isinstance(stored, TensorStorageMetadata)
            parameter = by_name.get(key.rpartition("/")[0])
            if parameter is None or (stored.size and stored.size != parameter.shape):
                raise other_model(f"{key} of {tuple(stored.size)}")
            like = parameter.detach() if stored.size else torch.zeros(())
            tensors[key] = torch.zeros_like(like, dtype=stored.properties.dtype)
        with _quiet():
            load(tensors, storage_reader=reader)
    except (SafetensorError, OSError, KeyError) as error:
        raise _damaged(folder, str(error)) from None
    restore(optimizer, tensors)


def _check(folder: Path) -> None:
    """Each process looks at every so manieth file, and all agree on what is wrong."""
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    wrong: str | None = None
    try:
        digests = files.read_json(folder / DIGESTS)
        for name in sorted(digests)[rank::world]:
            if not (folder / name).is_file() or files.digest(folder / name) != digests[name]:
                wrong = name
    except UserError as error:
        wrong = str(error)
    for each in gather(wrong):
        if each is not None:
            raise _damaged(folder, each)


def _damaged(folder: Path, found: str) -> UserError:
    return UserError(
        "the optimizer's state is not what was written",
        where=folder,
        found=found,
        do="restore it, or remove the folder: training then goes on from an older state, or begins anew",
    )


@contextmanager
def _quiet() -> Iterator[None]:
    # One process alone saves and loads as a group of one, and torch says so every time.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
