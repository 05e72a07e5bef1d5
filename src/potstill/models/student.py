"""A student: a transformers model that is taught at the supervised positions of a batch, and nowhere else.

`forward` is all that a wrapper (DDP, FSDP2) has to see: hidden states meet the head inside it, at supervised
positions only, chunk by chunk, so the logits [rows, length, vocabulary] of a batch never exist.

    >>> from potstill.models import Shape, random_student
    >>> from potstill.tokenization import train_unigram
    >>> tokenizer = train_unigram(["2 + 2 = 4", "The answer is 4"], 60)
    >>> shape = Shape("t5", d_model=8, layers=1, heads=2, d_ff=16, d_kv=4, vocabulary=tokenizer.size)
    >>> student = random_student(shape, tokenizer, seed=1)
    >>> target = Target([tokenizer.eos], [0, 1], [tokenizer.eos], [1.0], ["end"])
    >>> student(student.batch([Example(tuple(student.encode("2 + 2")), target)])).shape
    torch.Size([1])
"""

from __future__ import annotations

import inspect
import json
import os
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from potstill import losses, process, storage
from potstill.errors import UserError
from potstill.losses import sparse_kl, weighted_sparse_kl
from potstill.models.batch import Batch, Example, check_examples
from potstill.models.chat_template import ChatTemplate
from potstill.models.shape import Family
from potstill.records import Prompt, Target
from potstill.tokenization import Tokenizer

TOKENIZER_CONFIG: Final = "tokenizer_config.json"
DEFAULT_INPUT_NAMES: Final = (
    "input_ids",
    "token_type_ids",
    "attention_mask",
)  # what transformers 4 takes where nothing is said
DType = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class Head:
    """How hidden states become logits: scale * hidden @ weight.T + bias, then cap * tanh(. / cap) where there is a
    cap."""

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, d] -> [n, v] with every logit at once: for looking and for checks, not for training."""
        logits = nn.functional.linear(hidden * self.scale, self.weight, self.bias)
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


class Student(nn.Module):
    """A model, its tokenizer, and how the loss treats a kept mass under 1.

    model       the transformers model, its weights in float32 unless opened otherwise
    tokenizer   potstill's; its size may be under the head's rows (a padded vocabulary), never over
    mass        raw, renormalised or tail, see `potstill.losses`
    divergence  forward: of the student from the targets; reverse: of the targets from the student, with a tail
    kernel      how the loss is computed where losses are `summed`, see `potstill.losses`
    chat        the template in which prompts stand; None for plain prompts
    """

    family: ClassVar[Family]
    padded: bool  # whether the model computes layers for places that hold no token
    model: PreTrainedModel
    divergence: Literal["forward", "reverse"] = "forward"
    kernel: losses.Kernel = "plain"
    chat: ChatTemplate | None = None
    adapted: bool = False  # whether it has adapters, which alone learn; see `students.lora`
    folder: Path | None = None  # where its weights lie, if it was opened without them

    def __init__(
        self, model: PreTrainedModel, tokenizer: Tokenizer, *, mass: losses.MissingProbability = "raw"
    ) -> None:
        super().__init__()
        assert mass in losses.MISSING_PROBABILITY_MODES, (
            f"mass is one of {', '.join(losses.MISSING_PROBABILITY_MODES)}, not {mass!r}"
        )
        self.model, self.tokenizer = model, tokenizer
        self.mass: losses.MissingProbability = mass
        rows = self.head.weight.shape[0]
        if tokenizer.size > rows:
            raise UserError(
                "the tokenizer has more tokens than the model has rows",
                where="student",
                found=f"{tokenizer.size} tokens, {rows} rows",
                hint="give the tokenizer that belongs to this model",
            )

    def forward(self, batch: Batch, *, summed: bool = False) -> Any:
        """Losses [n] float32 of the supervised positions in (row, position) order, in nats, unweighted.

        summed  (sum(batch.weights * losses), losses) instead, the losses as constants: one matrix product less, and
                the way that training goes
        """
        head, hidden = self.head, self.hidden(batch)
        if self.divergence == "reverse":
            losses = self._reversed(hidden, head, batch)
            return ((batch.weights * losses).sum(), losses.detach()) if summed else losses
        own = (hidden, head.weight, batch.candidate_ids, batch.probabilities)
        how: Any = {"mass": self.mass, "bias": head.bias, "scale": head.scale, "cap": head.cap}
        if summed:
            return weighted_sparse_kl(*own, batch.weights, **how, kernel=self.kernel)
        return sparse_kl(*own, **how)

    def _reversed(self, hidden: Tensor, head: Head, batch: Batch) -> Tensor:
        log_q = losses.candidate_log_probabilities(
            hidden,
            head.weight,
            batch.candidate_ids,
            rest=True,
            shown=batch.probabilities > 0,
            bias=head.bias,
            scale=head.scale,
            cap=head.cap,
        )
        return losses.reverse_kl(log_q, batch.probabilities, "tail")

    @property
    @abstractmethod
    def head(self) -> Head:
        """The parameters of the head themselves, not a copy."""

    @abstractmethod
    def hidden(self, batch: Batch) -> Tensor:
        """Last hidden states [n, d] at the supervised positions."""

    @abstractmethod
    def render(self, prompt: Prompt) -> str:
        """The text that this student is shown for a prompt."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """A rendered prompt as token ids, special tokens included where the family has them."""

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> Batch:
        """`batch` without its checks."""

    def batch(self, examples: Sequence[Example]) -> Batch:
        """Examples as tensors, one row each, in the given order. Raises UserError on a token outside the tokenizer."""
        check_examples(examples, self.tokenizer.size)
        return self.collate(examples)

    def filler(self) -> Batch:
        """The smallest batch, of weight zero: what a process computes when the others still have a micro-batch."""
        end = self.tokenizer.eos
        return self.batch([Example((end,), Target([end], [0, 1], [end], [1.0], ["end"]), weight=0.0)])

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def checkpoint_activations(self) -> None:
        """Compute each layer again in the backward pass instead of keeping what it computed."""
        model: Any = self.model
        # The second is the older name of the first, which transformers 5.4 does not have and 6 will not have.
        (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()

    def parts(self) -> list[nn.Module]:
        """The modules that are computed one after another, inner ones first: where weights are spread over processes,
        each of them is gathered for itself. All other weights (embedding, head) are there as long as `forward` runs."""
        return list(getattr(self.model.get_decoder(), "layers", ()))

    def gathering(self) -> None:
        """Told when `parts` have become FSDP modules: they have to be entered by a method that gathers."""

    def settings(self) -> Mapping[str, Any]:
        """What must stand in config.json beyond what transformers writes."""
        return {}

    def state(self, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The weights by their Hugging Face names; tied ones share their memory.

        weights  the model's state_dict, where the model itself holds only a part of it
        """
        return dict(self.model.state_dict() if weights is None else weights)

    def copied(self) -> dict[str, Tensor]:
        """The plain model's state_dict as it is now, in memory of its own on the CPU: what `save` takes as weights."""
        state = {name: value.detach() for name, value in self.model.state_dict().items()}
        return _map_shared_tensors(self._plain(state), lambda value: value.to("cpu", copy=True))

    def _plain(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Without adapters: what they add is in the weights."""
        if not self.adapted:
            return state
        from potstill.models import lora

        with torch.no_grad():
            return lora.merge_adapters(self.model, state)

    def save(
        self, folder: Path | str, *, dtype: DType | None = None, weights: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write config.json, model.safetensors, generation_config.json and the tokenizer's files into an existing
        folder.

        dtype    of the written weights; None for the dtype that they have
        weights  as in `state`, or what `copied` gave at some time
        Raises OSError where the disk is full or may not be written to.
        """
        folder = Path(folder)
        assert folder.is_dir(), f"{folder} is not a folder"
        state = self._plain({name: value.detach() for name, value in self.state(weights).items()})
        if dtype is not None:
            kind = getattr(torch, dtype)
            state = _map_shared_tensors(state, lambda value: value.to(kind) if value.is_floating_point() else value)
        with disk_full_as_oserror(), torch.no_grad(), quiet_transformers():
            self.model.save_pretrained(folder, state_dict=state)
        path = folder / "config.json"
        written = json.loads(path.read_text("utf-8")) | dict(self.settings())
        written["dtype"] = dtype or str(self.model.dtype).removeprefix("torch.")
        storage.write_file(path, (json.dumps(written, indent=2, sort_keys=True) + "\n").encode())
        for weights_file in folder.glob("*.safetensors"):
            storage.copy_mode(path, weights_file)
        for name, content in {**self.tokenizer.files, **self._tokenizer_config()}.items():
            storage.write_file(folder / name, content)

    def _tokenizer_config(self) -> dict[str, bytes]:
        """tokenizer_config.json where it must say more than it does: which inputs it makes, since transformers 4 makes
        some that most models refuse, and a class that transformers 4 knows."""
        if "tokenizer.json" not in self.tokenizer.files:
            return {}
        config: dict[str, Any] = json.loads(self.tokenizer.files.get(TOKENIZER_CONFIG, b"{}"))
        taken = inspect.signature(self.model.forward).parameters
        asked = config.get("model_input_names") or DEFAULT_INPUT_NAMES
        more: dict[str, Any] = {"model_input_names": [name for name in asked if name in taken]}
        if config.get("tokenizer_class") == "TokenizersBackend":
            more["tokenizer_class"] = "PreTrainedTokenizerFast"
        if config.items() >= more.items():
            return {}
        return {TOKENIZER_CONFIG: json.dumps(config | more, ensure_ascii=False, indent=1).encode()}


def _map_shared_tensors(state: Mapping[str, Tensor], change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """A state whose tensors are changed. Tied weights are told by their shared memory when the file is written, so each
    memory is changed once."""
    seen: dict[tuple[int, torch.Size], Tensor] = {}
    changed = {}
    for name, value in state.items():
        key = (value.data_ptr(), value.shape)
        if key not in seen:
            seen[key] = change(value)
        changed[name] = seen[key]
    return changed


@contextmanager
def disk_full_as_oserror() -> Iterator[None]:
    """Safetensors tells of a full disk in words only; here it is the OSError that it was."""
    try:
        yield
    except SafetensorError as fault:
        if code := re.search(r"(?:os error |Os \{ code: )(\d+)", str(fault)):  # newer and older words
            raise OSError(int(code[1]), os.strerror(int(code[1]))) from fault
        raise


@contextmanager
def quiet_transformers() -> Iterator[None]:
    # Transformers warns of every head of its own in a T5, and draws a bar for a file of a megabyte.
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def default_device() -> torch.device:
    """Where this process computes: a GPU of its own, where the machine has any."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # SLURM may show each process its own GPU only, which then is the first.
    return torch.device("cuda", process.read_process_rank().local % torch.cuda.device_count())
