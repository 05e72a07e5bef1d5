"""A student: a transformers model that is trained only at the supervised positions of a batch.

A wrapper (DDP, FSDP2) only needs `forward`. It applies the head only to hidden states at supervised positions, in chunks,
so the logits [rows, length, vocabulary] of a batch never exist.

    >>> SHAPES["flan-t5-base"].layers, count_parameters(SHAPES["flan-t5-base"])
    (12, 247577856)
    >>> count_adapter_parameters(SHAPES["flan-t5-base"], rank=16)
    6782976
    >>> from potstill.models import Shape, random_student
    >>> from potstill import demo, tokenization
    >>> tokenizer = tokenization.load_tokenizer(demo.DATA / "models" / "student")
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from potstill import process, storage
from potstill.errors import UserError
from potstill.losses import DEFAULT_LOSS, Loss, OnPolicyLoss
from potstill.models import adapter_files, lora
from potstill.models.batch import Batch, Example, check_examples, written_positions
from potstill.models.chat_template import ChatTemplate
from potstill.models.weight_files import StoredDType
from potstill.records import Prompt, Target
from potstill.tokenization import Tokenizer

TOKENIZER_CONFIG: Final = "tokenizer_config.json"
DEFAULT_INPUT_NAMES: Final = ("input_ids", "token_type_ids", "attention_mask")  # of transformers 4
DType = Literal["float32", "bfloat16"]
Family = Literal["t5", "causal"]


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a model. `t5`: encoder and decoder; `causal`: a decoder like Llama.

    layers          number of decoder layers, and of encoder layers unless `encoder_layers` is given
    d_kv            width of an attention head
    vocabulary      rows of the embedding; at least the tokenizer's size
    kv_heads        causal only: number of key and value heads (grouped-query attention); None: the same as `heads`
    gated           t5 only: True for the feed-forward layer of v1.1 (gated GELU, three matrices), False for that of v1.0
                    (ReLU, two matrices)
    tied            whether the head is the input embedding. A tied t5 is a v1.0: its logits are scaled by d_model^-0.5
    buckets         t5 only: number of relative position buckets
    reach           t5 only: distance from which all positions share the last bucket
    length          causal only: longest row that the rotary positions support
    """

    family: Family
    d_model: int
    layers: int
    heads: int
    d_ff: int
    d_kv: int
    vocabulary: int
    encoder_layers: int | None = None
    kv_heads: int | None = None
    gated: bool = True
    tied: bool = False
    buckets: int = 32
    reach: int = 128
    length: int = 2048


def _flan_t5(d_model: int, d_ff: int, layers: int, heads: int) -> Shape:
    return Shape("t5", d_model, layers, heads, d_ff, d_kv=64, vocabulary=32128)


SHAPES: Final[Mapping[str, Shape]] = {
    "flan-t5-small": _flan_t5(512, 1024, 8, 6),
    "flan-t5-base": _flan_t5(768, 2048, 12, 12),
    "flan-t5-large": _flan_t5(1024, 2816, 24, 16),
    "flan-t5-xl": _flan_t5(2048, 5120, 24, 32),
    "flan-t5-xxl": _flan_t5(4096, 10240, 24, 64),
}


def count_parameters(shape: Shape) -> int:
    """The number of parameters. Tied parameters count once."""
    embeddings = shape.vocabulary * shape.d_model * (1 if shape.tied else 2)
    if shape.family == "causal":
        others = (2 * shape.layers + 1) * shape.d_model  # norms
    else:
        norms = 2 * (shape.encoder_layers or shape.layers) + 3 * shape.layers + 2
        others = norms * shape.d_model + 2 * shape.buckets * shape.heads
    return embeddings + count_matrix_elements(shape) + others


def count_matrix_elements(shape: Shape) -> int:
    """The number of elements of all matrices except the embeddings and the head: the products of one token."""
    width = shape.heads * shape.d_kv
    if shape.family == "causal":
        kv_width = (shape.kv_heads or shape.heads) * shape.d_kv
        return shape.layers * shape.d_model * (2 * width + 2 * kv_width + 3 * shape.d_ff)
    attention = 4 * shape.d_model * width
    feed_forward = (3 if shape.gated else 2) * shape.d_model * shape.d_ff
    encoder = (shape.encoder_layers or shape.layers) * (attention + feed_forward)
    return encoder + shape.layers * (2 * attention + feed_forward)


def count_adapter_parameters(shape: Shape, rank: int) -> int:
    """The number of parameters of the adapters of a model: rank * (inputs + outputs) for each linear layer."""
    width = shape.heads * shape.d_kv
    if shape.family == "causal":
        kv_width = (shape.kv_heads or shape.heads) * shape.d_kv
        attention, matrices = 2 * (shape.d_model + width) + 2 * (shape.d_model + kv_width), 3
    else:
        attention, matrices = 4 * (shape.d_model + width), 3 if shape.gated else 2
    feed_forward = matrices * (shape.d_model + shape.d_ff)
    encoder = 0 if shape.family == "causal" else (shape.encoder_layers or shape.layers) * (attention + feed_forward)
    decoder = shape.layers * ((1 if shape.family == "causal" else 2) * attention + feed_forward)
    return rank * (encoder + decoder)


@dataclass(frozen=True, slots=True)
class Head:
    """The function from hidden states to logits: scale * hidden @ weight.T + bias.

    With a softcap, the logits are then softcap * tanh(logits / softcap).
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [n, d] -> logits [n, v], all at once. For inspection and scoring, not for training."""
        return self.cap(nn.functional.linear(hidden * self.scale, self.weight, self.bias))

    def cap(self, logits: Tensor) -> Tensor:
        """The logits after the softcap; unchanged without a softcap."""
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


class Student(nn.Module):
    """A transformers model, its tokenizer, and the form of its prompts.

    model         the transformers model; its weights are float32 unless it was opened with another dtype
    tokenizer     potstill's tokenizer. It may have fewer tokens than the head has rows (a padded vocabulary), never more
    chat          chat template of the prompts; None for plain prompts
    adapter_base  base of the adapters, which their checkpoints name; None without adapters
    folder        folder of the weights, for a student that was opened without weights
    """

    family: ClassVar[Family]
    padded: bool  # whether the model computes layers for padding
    model: PreTrainedModel
    chat: ChatTemplate | None = None
    folder: Path | None = None
    adapter_base: adapter_files.AdapterBase | None = None

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        if tokenizer.size > (rows := self.head.weight.shape[0]):
            raise UserError(
                "the tokenizer has more tokens than the model has rows",
                code="E-model-tokenizer-too-large",
                where="student",
                found=f"{tokenizer.size} tokens, {rows} rows",
                hint="use the tokenizer that belongs to this model",
            )

    def __repr__(self) -> str:
        """One line; `student.model` prints its layers."""
        dtypes = {str(p.dtype).removeprefix("torch.") for p in self.model.parameters()}
        count = sum(p.numel() for p in self.model.parameters())
        name = type(self.model).__name__
        about = f"{count:,} parameters, {' and '.join(sorted(dtypes))}, {self.tokenizer.size:,} tokens"
        return f"{type(self).__name__}({name}, {about})"

    @property
    def opens_thought(self) -> bool:
        """Whether prompts end inside a thought, which the model must close before it answers."""
        return self.chat is not None and self.chat.opens_thought

    def forward(self, batch: Batch, loss: Loss | OnPolicyLoss = DEFAULT_LOSS, *, summed: bool = False) -> Any:
        """Losses [n] float32 of the supervised positions in (example, position) order, in nats, unweighted.

        summed  return (sum(batch.weights * losses), losses) instead. The sum has a gradient, the losses have none; this
                saves one matrix product for forward KL. Training uses it. An `OnPolicyLoss` needs it, and a batch of
                texts that the student wrote
        """
        head = self.head
        inputs = (self.hidden(batch), head.weight, batch.candidate_ids, batch.probabilities)
        options: dict[str, Any] = {"bias": head.bias, "scale": head.scale, "softcap": head.softcap}
        if isinstance(loss, OnPolicyLoss):
            assert summed and batch.written is not None, "an on-policy loss needs texts that the student wrote"
            return loss.weighted_sum(*inputs, batch.weights, written=batch.written, **options)
        return loss.weighted_sum(*inputs, batch.weights, **options) if summed else loss(*inputs, **options)

    @property
    @abstractmethod
    def head(self) -> Head:
        """The head, with the model's parameters, not copies."""

    @abstractmethod
    def hidden(self, batch: Batch) -> Tensor:
        """Last hidden states [n, d] at the supervised positions."""

    @abstractmethod
    def render(self, prompt: Prompt) -> str:
        """The text that this student reads for a prompt."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """A rendered prompt as token ids, with the special tokens of the family."""

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> Batch:
        """Examples as tensors, as `batch` does, but without checks."""

    def batch(self, examples: Sequence[Example]) -> Batch:
        """Examples as tensors, in the given order. Raises UserError for a token that the tokenizer does not have."""
        check_examples(examples, self.tokenizer.size)
        return replace(self.collate(examples), written=written_positions(examples))

    def filler_batch(self) -> Batch:
        """The smallest batch, with weight 0. A process computes it while other processes still have a micro-batch."""
        end = self.tokenizer.eos
        return self.batch([Example((end,), Target([end], [0, 1], [end], [1.0], ["end"]), weight=0.0)])

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    @property
    def has_adapters(self) -> bool:
        """Whether the model has LoRA adapters; only these are then trained."""
        return lora.has_adapters(self.model)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute each layer in the backward pass instead of storing its activations."""
        model: Any = self.model
        # transformers 5.4 lacks the newer name, and 6 will drop the older name.
        (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()

    def convert_weights(self, dtype: DType) -> None:
        """Convert the weights to a dtype, in place.

        Other tensors, such as the frequencies of rotary positions, keep their precision, as in a model that transformers
        opens in this dtype. `Module.to` would also round them.
        """
        with torch.no_grad():
            for parameter in self.model.parameters():  # a tied weight is one parameter
                parameter.data = parameter.data.to(getattr(torch, dtype))

    def shardable_modules(self) -> list[nn.Module]:
        """The modules that FSDP gathers one after another, inner modules first.

        All other weights (embedding, head) stay gathered while `forward` runs.
        """
        return list(getattr(self.model.get_decoder(), "layers", ()))

    def register_fsdp_methods(self) -> None:
        """Register methods in which FSDP gathers weights. Call it after `shardable_modules` have become FSDP modules."""

    def config_overrides(self) -> Mapping[str, Any]:
        """Keys and values of config.json that transformers does not write."""
        return {}

    def weights(self, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Hugging Face name -> weight. Tied weights share their memory.

        weights  the model's full state_dict, for a model that holds only a part of it
        """
        return dict(self.model.state_dict() if weights is None else weights)

    def copy_weights(self) -> dict[str, Tensor]:
        """A copy on the CPU of what a checkpoint contains: the model's state_dict, or its adapters alone.

        `save_checkpoint` accepts it as `weights`; so does `save` without adapters.
        """
        state = self.checkpoint_state(self.model.state_dict())
        return _map_shared_tensors(state, lambda value: value.to("cpu", copy=True))

    def save(
        self, folder: Path | str, *, dtype: StoredDType | None = None, weights: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write config.json, model.safetensors, generation_config.json and the tokenizer's files into a folder.

        folder   an existing folder
        dtype    dtype of the written weights; None: unchanged
        weights  as for the method `weights`, or a result of `copy_weights`; None: the current weights

        Raises OSError if the disk is full or read-only.
        """
        folder = Path(folder)
        assert folder.is_dir(), f"{folder} is not a folder"
        assert not self.has_adapters, "adapters are saved alone, with `save_checkpoint`"
        state = {name: value.detach() for name, value in self.weights(weights).items()}
        if dtype is not None:
            target = getattr(torch, dtype)
            state = _map_shared_tensors(state, lambda value: value.to(target) if value.is_floating_point() else value)
        with disk_full_as_oserror(), torch.no_grad(), quiet_transformers():
            self.model.save_pretrained(folder, state_dict=state)
        path = folder / "config.json"
        config = json.loads(path.read_text("utf-8")) | dict(self.config_overrides())
        config["dtype"] = dtype or str(self.model.dtype).removeprefix("torch.")
        storage.write_file(path, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
        for weights_file in folder.glob("*.safetensors"):
            storage.copy_mode(path, weights_file)
        for name, content in {**self.tokenizer.files, **self._tokenizer_config()}.items():
            storage.write_file(folder / name, content)

    def save_checkpoint(self, folder: Path, *, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write a checkpoint of a training into an existing folder: the model, or a folder of peft with its adapters alone.

        weights  as for `save`; with adapters, their matrices suffice
        """
        if not self.has_adapters:
            self.save(folder, weights=weights)
            return
        assert self.adapter_base is not None, "the base of adapters is recorded when training begins"
        state = self.model.state_dict() if weights is None else weights
        adapter_files.save_adapter(state, folder, self.family, self.adapter_base)

    def checkpoint_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The part of the model's state_dict that a checkpoint contains."""
        only_adapters = self.has_adapters
        return {name: value for name, value in state.items() if not only_adapters or lora.is_thin_matrix(name)}

    def _tokenizer_config(self) -> dict[str, bytes]:
        """tokenizer_config.json, completed for transformers 4; empty if the tokenizer's file is complete.

        It gets a class that transformers 4 knows, and the names of the inputs that the tokenizer makes, because
        transformers 4 by default makes inputs that most models refuse.
        """
        if "tokenizer.json" not in self.tokenizer.files:
            return {}
        config: dict[str, Any] = json.loads(self.tokenizer.files.get(TOKENIZER_CONFIG, b"{}"))
        accepted = inspect.signature(self.model.forward).parameters
        names = config.get("model_input_names") or DEFAULT_INPUT_NAMES
        additions: dict[str, Any] = {"model_input_names": [name for name in names if name in accepted]}
        if config.get("tokenizer_class") == "TokenizersBackend":
            additions["tokenizer_class"] = "PreTrainedTokenizerFast"
        if config.items() >= additions.items():
            return {}
        return {TOKENIZER_CONFIG: json.dumps(config | additions, ensure_ascii=False, indent=1).encode()}


def _map_shared_tensors(state: Mapping[str, Tensor], change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """A state with changed tensors. Shared memory is changed once and stays shared.

    Saving recognises tied weights by their shared memory.
    """
    changed: dict[tuple[int, torch.Size], Tensor] = {}
    for value in state.values():
        if (key := (value.data_ptr(), value.shape)) not in changed:
            changed[key] = change(value)
    return {name: changed[value.data_ptr(), value.shape] for name, value in state.items()}


@contextmanager
def disk_full_as_oserror() -> Iterator[None]:
    """Convert safetensors' error for a full disk, which has the error number only in its text, to an OSError."""
    try:
        yield
    except SafetensorError as fault:
        if code := re.search(r"(?:os error |Os \{ code: )(\d+)", str(fault)):  # newer and older versions
            raise OSError(int(code[1]), os.strerror(int(code[1]))) from fault
        raise


@contextmanager
def quiet_transformers() -> Iterator[None]:
    # transformers warns about every untied head of a T5, and draws a progress bar for a file of one megabyte.
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
    """The device of this process: its GPU if the machine has GPUs, otherwise the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # SLURM may show each process only its own GPU, which is then the first GPU.
    return torch.device("cuda", process.read_process_rank().local % torch.cuda.device_count())


def describe_devices() -> list[str]:
    """The devices of this machine, and the version of CUDA for which torch was built."""
    if not torch.cuda.is_available():
        return [f"only the CPU (torch is built {'without CUDA' if torch.version.cuda is None else 'with CUDA'})"]
    names = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [f"{one.name}, {one.total_memory / 2**30:.0f} GiB" for one in names] + [f"CUDA {torch.version.cuda}"]
