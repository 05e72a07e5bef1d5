"""The sections of a recipe: every key with its type, default and meaning.

>>> Recipe(name="mine").train.learning_rate
0.0005
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from potstill.recipe.fields import (
    CheckpointSteps,
    Count,
    CustomSet,
    Decay,
    DecodingName,
    FormatName,
    Name,
    Positive,
    QuestionsSection,
    ReferenceRow,
    Section,
    Share,
    TextsSection,
    refuse,
    with_in_distribution_groups,
)
from potstill.recipe.on_policy import OnPolicySection, TrainOnPolicySection
from potstill.recipe.selection import SelectSection, check_selection
from potstill.recipe.student import StudentSection
from potstill.recipe.teacher import (
    FilterSection,
    TeacherSection,
    TransferSection,
    VllmSection,
    check_lengths,
    check_sources,
    with_vllm_batch,
)


class ReplaySection(Section):
    """Generic rows in every training step, so that the student keeps its earlier abilities."""

    share: Share = Field(description="Fraction of each step's loss weight that goes to the replayed rows.")
    sets: list[Name] = Field(
        default=[],
        description="Sets whose training questions are replayed, with the rationale, or without one, the bare answer.",
    )
    file: str | None = Field(default=None, description="File of rows with prompt and answer, JSONL or Parquet.")

    @model_validator(mode="after")
    def _complete(self) -> ReplaySection:
        if not self.sets and self.file is None:
            refuse("E-recipe-replay-empty", "replay needs sets, or a file of rows with prompt and answer")
        return self


class LengthsSection(Section):
    """Shares of long and short chains among the chains of a question that are drawn."""

    long_from: Positive = Field(
        description="Number of the student's tokens, end token included, from which a chain is long."
    )
    short: Count = Field(default=1, description="Quota of short chains; 0 leaves them out.")
    long: Count = Field(default=1, description="Quota of long chains; 0 leaves them out.")


class TrainSection(Section):
    seed: Count | None = Field(
        default=None,
        description="Seed of training: the order of questions and chains, the demonstrations in their prompts, dropout, the "
        "first weights of LoRA, and on-policy texts; the recipe's `seed` if not given. A student without `model` has its "
        "random weights from `seed`.",
    )
    formats: dict[FormatName, Count] = Field(
        default={"zero-shot-rationale": 1},
        description="Quota of each prompt format among the prompts of a step; {a: 3, b: 1} gives three a for one b.",
    )
    loss_weights: dict[FormatName, Annotated[float, Field(ge=1e-6, le=1e6)]] | None = Field(
        default=None,
        description="Relative weight of each format in the gradient of every step, independent of its number of rows; by "
        "default, all supervised tokens have the same weight. With on_policy, the weights divide the part of stored chains.",
    )
    uniform_over: Literal["questions", "chains"] = Field(
        default="questions",
        description="Whether all questions or all chains are drawn equally often; with chains, a question with 40 "
        "right chains counts forty times as much as a question with one.",
    )
    sources: dict[Name, Count] | None = Field(
        default=None,
        description="With `teachers`: quota of each source among the chains of a question that are drawn; 0 leaves it out.",
    )
    lengths: LengthsSection | None = Field(
        default=None,
        description="Quotas of short and long chains among the chains of a question that are drawn; without it, length does "
        "not matter.",
    )
    demonstrations: Positive = Field(default=4, description="Number of demonstrations in a few-shot prompt.")
    replay: ReplaySection | None = Field(
        default=None,
        description="Generic rows that are mixed into every step; not related to the teacher kind replay.",
    )
    on_policy: TrainOnPolicySection | None = Field(
        default=None, description="Texts of the current student in every step; without it, all texts are stored chains."
    )
    missing_probability: Literal["raw", "renormalised", "tail"] = Field(
        default="raw",
        description="How the loss treats the probability outside the candidates: ignore it (raw), scale the candidates to "
        "a sum of 1 (renormalised), or compare it as one additional outcome (tail).",
    )
    divergence: str = Field(
        default="forward_kl",
        description="forward_kl, reverse_kl or generalized_jsd. The last two need missing_probability: tail or "
        "renormalised.",
    )
    divergence_beta: float = Field(
        default=0.5, gt=0, lt=1, description="For generalized_jsd: the teacher's weight in the mixture."
    )
    steps: Positive = Field(default=1000, description="Number of optimizer steps.")
    prompts_per_step: Positive = Field(
        default=32, description="Number of prompts per step; a prompt is one question in one format with some chains."
    )
    chains_per_prompt: Positive = Field(default=1, description="Maximum number of chains per prompt of a step.")
    batch_tokens: Positive = Field(
        default=8192, description="Maximum number of tokens per micro-batch; affects memory, not the result."
    )
    learning_rate: float = Field(default=5e-4, gt=0, description="Peak learning rate.")
    optimizer: Literal["adamw", "adafactor"] = Field(default="adamw", description="Optimizer.")
    betas: list[Decay] = Field(
        default=[0.9, 0.999], min_length=2, max_length=2, description="Decay rates of AdamW's two moments."
    )
    lr_multipliers: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={},
        description="Factors of the learning rate, by a part of the parameter's name: {relative_attention_bias: 10}.",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Type of matrix products; weights and loss are always float32."
    )
    loss_kernel: Literal["measured", "plain", "compiled"] = Field(
        default="measured",
        description="Implementation of the loss; measured: the faster implementation on a GPU, plain on a CPU.",
    )
    lora: Count = Field(
        default=0,
        description="Rank of LoRA adapters (extra `lora`); 0: train all weights. A checkpoint has only the adapter.",
    )
    load_in_4bit: bool = Field(
        default=False,
        description="Keep the frozen weights of linear layers in 4 bits (NF4) while adapters are trained (QLoRA). It needs "
        "the extra `qlora` and a GPU.",
    )
    save_adapter: bool = Field(
        default=False,
        description="Also write the LoRA adapter, as a folder of peft, into the student's folder, which has the merged "
        "weights.",
    )
    sharding: Literal["none", "full"] = Field(
        default="none",
        description="full: shard weights, gradients and optimizer state over the processes of torchrun or srun.",
    )
    peak_flops: float | None = Field(
        default=None, gt=0, description="Peak speed of the device for the reported utilization, in operations/s."
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="Recompute activations in the backward pass: less memory, about a third more time.",
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="Schedule of the learning rate after the warmup."
    )
    warmup_steps: Count = Field(default=10, description="Number of steps of linear warmup.")
    stable_steps: Count = Field(
        default=0, description="Number of steps at the peak before a linear or cosine schedule falls."
    )
    weight_decay: float = Field(default=0.0, ge=0, description="Weight decay, except for norms and biases.")
    max_grad_norm: float | None = Field(
        default=1.0, gt=0, description="Norm to which gradients are clipped; null: no clipping."
    )
    checkpoint_every: Positive = Field(
        default=250, description="Number of steps between two checkpoints. The last step is also a checkpoint."
    )
    checkpoints: CheckpointSteps | None = Field(
        default=None,
        description="More checkpoints, in addition to every `checkpoint_every` steps: log for 1, 2, 4, 8, ... up to "
        "checkpoint_every, or a list of steps. They do not count for early_stopping_patience.",
    )
    async_checkpoints: bool = Field(
        default=True,
        description="Write checkpoints from a copy in host memory during the next steps (12 bytes per parameter with "
        "AdamW); false: wait, without a copy.",
    )
    evaluate: bool = Field(default=False, description="Evaluate each checkpoint on validation as soon as it is saved.")
    early_stopping_patience: Positive | None = Field(
        default=None,
        description="Training stops after this number of checkpoints without a better value of select.rule; implies "
        "evaluate.",
    )

    @property
    def extra_checkpoints(self) -> frozenset[int]:
        """The steps that are checkpoints only because `checkpoints` names them."""
        named = self.checkpoints or []
        if named == "log":
            named = [1 << power for power in range(self.checkpoint_every.bit_length())]
        return frozenset(step for step in named if step % self.checkpoint_every and step < self.steps)

    @property
    def checkpoint_steps(self) -> list[int]:
        """The steps after which a checkpoint is saved, in order."""
        return sorted(
            {*range(self.checkpoint_every, self.steps, self.checkpoint_every), self.steps, *self.extra_checkpoints}
        )

    @field_validator("precision", mode="before")
    @classmethod
    def _no_float16(cls, value: Any) -> Any:
        if value in ("float16", "fp16", "half"):
            refuse("E-recipe-float16", "float16 overflows in T5 and FlanT5; use bfloat16 or float32")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> TrainSection:
        if self.optimizer == "adafactor" and self.betas != [0.9, 0.999]:
            refuse("E-recipe-adafactor-betas", "adafactor has no betas")
        if self.sharding == "full" and self.optimizer == "adafactor":
            refuse("E-recipe-sharding", "torch's Adafactor has no sharded form: sharding: full needs optimizer: adamw")
        if self.load_in_4bit and (not self.lora or self.sharding == "full"):
            refuse("E-recipe-4bit", "load_in_4bit needs train.lora, the rank of the adapters, and sharding: none")
        if self.save_adapter and not self.lora:
            refuse("E-recipe-save-adapter", "save_adapter needs train.lora, the rank of the adapter")
        if self.stable_steps and self.schedule == "constant":
            refuse("E-recipe-schedule", "stable_steps needs a schedule that falls: linear or cosine")
        if self.stable_steps and self.warmup_steps + self.stable_steps > self.steps:
            both = f"warmup_steps {self.warmup_steps} and stable_steps {self.stable_steps}"
            refuse("E-recipe-schedule", f"{both} exceed steps {self.steps}")
        if isinstance(self.checkpoints, list) and max(self.checkpoints) > self.steps:
            refuse("E-recipe-checkpoints", f"checkpoints names step {max(self.checkpoints)}, but steps is {self.steps}")
        if sum(self.formats.values()) > 1_000_000:
            hint = "write smaller numbers in the same proportion"
            refuse("E-recipe-formats", f"the sum of the quotas in formats exceeds a million; {hint}")
        if self.loss_weights is not None:
            taught = {name for name, quota in self.formats.items() if quota}
            for name in sorted(taught ^ set(self.loss_weights)):
                fault = f"{name} has no weight" if name in taught else f"{name} has no quota in train.formats"
                refuse("E-recipe-loss-weights", f"loss_weights must name all trained formats and no others: {fault}")
        return self


class EvaluateSection(Section):
    seed: Count | None = Field(
        default=None, description="Seed of sampled answers (vote-N, best-N); the recipe's `seed` if not given."
    )
    formats: list[FormatName] = Field(
        default=["zero-shot-rationale"], min_length=1, description="Prompt formats in which checkpoints are evaluated."
    )
    decodings: list[DecodingName] = Field(
        default=["greedy"],
        min_length=1,
        description="Decodings of every evaluation: greedy, vote-N or best-N over N samples; with a calculator: "
        "NAME+calculator. The first decoding selects the checkpoint.",
    )
    test_decodings: list[DecodingName] = Field(
        default=[], description="Additional decodings for the base and the selected checkpoint, only on test."
    )
    temperature: float = Field(default=0.7, gt=0, description="Sampling temperature of vote-N and best-N.")
    engine: Literal["transformers", "ctranslate2", "ctranslate2-int8", "vllm"] = Field(
        default="transformers",
        description="Inference engine; CTranslate2 needs the extra `fast` and three times the memory, and int8 changes "
        "answers; vLLM needs the extra `vllm`. Only transformers has a calculator.",
    )
    vllm: VllmSection = VllmSection()
    interpolate: list[Share] | None = Field(
        default=None,
        description="Shares of each checkpoint's weights to interpolate with the base's; each interpolation is "
        "evaluated and can be selected.",
    )
    demonstrations: str | None = Field(
        default=None, description="Text file of demonstrations for the few-shot formats; training questions by default."
    )
    texts: dict[Name, TextsSection] | None = Field(
        default=None,
        description="Texts by name, whose bits per byte are measured on test before and after training, for decoder-only "
        "students: {prose: book.txt, gsm8k: {file: gsm8k/test.jsonl, field: question, limit: 200}}.",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="Type of the weights and of the arithmetic in evaluation, for engine: transformers. With bfloat16, "
        "norms, softmax and the logits of likely tokens are still float32.",
    )
    max_tokens: Positive = Field(default=256, description="Maximum number of tokens per answer.")
    base_max_tokens: Positive | None = Field(
        default=None, description="Maximum number of tokens per answer of the base; by default, max_tokens."
    )
    stop_repeats: bool = Field(
        default=False,
        description="Stop an answer that repeats itself: it ends with a block of at most 64 tokens, repeated at least 4 "
        "times, with at least 32 tokens in total. The answer counts as truncated.",
    )
    stop_at_answer: bool = Field(
        default=False,
        description="Stop an answer after the first sentence that contains 'answer is', for models that continue; "
        "later text, even a correction, does not count.",
    )
    batch_tokens: Positive = Field(default=16384, description="Maximum number of tokens per batch.")
    cache: str | None = Field(
        default=None, description="Folder that caches answers by checkpoint, prompt and decoding."
    )

    @model_validator(mode="before")
    @classmethod
    def _vllm_batch(cls, value: Any) -> Any:
        return with_vllm_batch(value, "engine")


class ReportSection(Section):
    examples: Count = Field(
        default=6,
        description="Number of example questions on the page, both for the teacher's chains and for each outcome.",
    )
    chain: str | None = Field(
        default=None,
        description="Chain in the drawing on the page, as QUESTION#INDEX; by default, one of the examples.",
    )
    controls: list[Name] = Field(
        default=[], description="Finished runs for comparison, with the same base and the same test questions."
    )
    licences: dict[Name, str] = Field(
        default={}, description="Licence of each set and model, shown on the page and the model card."
    )
    terms: str | None = Field(
        default=None, description="A sentence on the teacher's terms of use, shown on the page and the model card."
    )
    references: list[ReferenceRow] = Field(
        default=[], description="Figures from the literature, which tables show as quoted beside the run's own."
    )
    notes: list[str] = Field(default=[], description="Sentences that the page shows, such as sources and licences.")


class Recipe(Section):
    name: Name = Field(description="Name of the run; its folder is runs/NAME.")
    seed: Count = Field(
        default=0,
        description="Seed of every random choice of the run. teacher.seed, train.seed and evaluate.seed replace it for "
        "one purpose each: with another train.seed, a run keeps its chains.",
    )
    data: str | None = Field(
        default=None,
        description="Folder of the built-in sets, or its URL in an object store; the environment variable "
        "POTSTILL_DATA if not given.",
    )
    sets: dict[Name, CustomSet] = Field(default={}, description="Custom sets by name.")
    questions: QuestionsSection = QuestionsSection()
    teacher: TeacherSection = TeacherSection()
    teachers: dict[Name, TeacherSection] | None = Field(
        default=None,
        description="Several sources of chains by name, instead of `teacher`, each with the keys of `teacher`: "
        "{big: {kind: openai, model: NAME, samples: 8}, human: {kind: human}}.",
    )
    filter: FilterSection = FilterSection()
    transfer: TransferSection = TransferSection()
    student: StudentSection = StudentSection(shape="flan-t5-base", tokenizer="tokenizers/t5")
    train: TrainSection = TrainSection()
    evaluate: EvaluateSection = EvaluateSection()
    select: SelectSection = SelectSection()
    on_policy: OnPolicySection | None = Field(
        default=None, description="On-policy distillation of the selected checkpoint; none if not given."
    )
    report: ReportSection = ReportSection()

    @property
    def sampling_seed(self) -> int:
        return self.seed if self.teacher.seed is None else self.teacher.seed

    @property
    def training_seed(self) -> int:
        return self.seed if self.train.seed is None else self.train.seed

    @property
    def evaluation_seed(self) -> int:
        return self.seed if self.evaluate.seed is None else self.evaluate.seed

    def __repr_args__(self) -> Iterator[tuple[str, Any]]:
        """The fields of `repr`, in one line; `recipe_to_yaml` writes all keys."""
        kinds = [source.kind for source in (self.teachers or {"": self.teacher}).values()]
        student = self.student.model or self.student.shape
        yield from {"name": self.name, "sets": list(self.sets), "teacher": ", ".join(kinds), "student": student}.items()

    @property
    def sources(self) -> dict[str, Recipe]:
        """Name -> the recipe with only this teacher. Without `teachers`: an empty name -> the recipe itself."""
        if self.teachers is None:
            return {"": self}
        return {
            name: self.model_copy(update={"teacher": section.model_copy(update={"name": name}), "teachers": None})
            for name, section in self.teachers.items()
        }

    @property
    def teacher_label(self) -> str:
        """The sources of the chains for readers."""
        labels = [(name, source.teacher.label) for name, source in self.sources.items()]
        return ", ".join(label if name in ("", label) else f"{name} ({label})" for name, label in labels)

    @property
    def has_teacher(self) -> bool:  # without a teacher, the student is only evaluated
        return self.teacher.kind != "none"

    @model_validator(mode="before")
    @classmethod
    def _one_data_set(cls, value: Any) -> Any:
        return with_in_distribution_groups(value)

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.select.format not in self.evaluate.formats:
            refuse("E-recipe-select-format", f"select.format {self.select.format!r} is not among evaluate.formats")
        if not any(self.train.formats.values()):
            refuse("E-recipe-formats", "train.formats gives every format the quota 0")
        if self.train.save_adapter and self.student.model is None:
            message = "train.save_adapter needs student.model, because an adapter is useless without its base"
            refuse("E-recipe-save-adapter", message)
        check_sources(self.teacher, self.teachers, self.train.sources, self.train.uniform_over)
        if (lengths := self.train.lengths) is not None:
            check_lengths(lengths.short + lengths.long, self.train.sources, self.train.uniform_over)
        if self.has_teacher:
            self._check_training_sets()
        elif self.on_policy or self.train.on_policy:
            refuse("E-recipe-on-policy-teacher", "on_policy needs a teacher: without a teacher, nothing is trained")
        self._check_evaluation()
        return self

    def _check_training_sets(self) -> None:
        questions = self.questions
        if not questions.train:
            refuse("E-recipe-no-training-set", "questions.train is empty: there is nothing to learn from")
        check_selection(self.select, questions)
        for name in questions.out_of_distribution:
            if name in questions.train:
                refuse("E-recipe-set-trained", f"questions.out_of_distribution names {name}, which is trained on")
        for name in self.train.replay.sets if self.train.replay else ():
            if name in questions.train:
                refuse("E-recipe-set-trained", f"train.replay names {name}, which questions.train already names")
        train = self.train
        sections = {"train.replay": train.replay, "train.on_policy": train.on_policy, "on_policy": self.on_policy}
        for key, section in sections.items():
            for name in section.sets if section else ():
                if name in questions.out_of_distribution:
                    refuse("E-recipe-set-selects", f"{key} names {name}, which is out of distribution: not trained on")

    def _check_evaluation(self) -> None:
        questions = self.questions
        evaluated = questions.in_distribution + questions.out_of_distribution + questions.generic
        if not evaluated:
            refuse("E-recipe-no-evaluation-set", "questions names no set to evaluate on")
        decodings = self.evaluate.decodings + self.evaluate.test_decodings
        if self.evaluate.engine != "transformers" and any(name.endswith("+calculator") for name in decodings):
            refuse("E-recipe-calculator-engine", "a decoding with a calculator needs evaluate.engine: transformers")
        for row in self.report.references:
            if row.set not in evaluated:
                message = f"report.references names {row.set}, which is not evaluated"
                refuse("E-recipe-reference-set", f"{message}; the sets are {', '.join(evaluated)}")
        for (name, _, set), times in Counter((r.name, r.source, r.set) for r in self.report.references).items():
            if times > 1:
                refuse("E-recipe-named-twice", f"report.references has two figures of {name} for {set} from one source")
        self._check_engine()
        self._check_limits(evaluated)
        for names in (questions.train, evaluated, self.evaluate.formats, decodings):
            for name, times in Counter(names).items():
                if times > 1:
                    once = "a set has one group, and a format or decoding is evaluated once"
                    refuse("E-recipe-named-twice", f"{name} is named twice: {once}")

    def _check_engine(self) -> None:
        evaluate = self.evaluate
        if evaluate.engine == "transformers":
            return
        if evaluate.dtype != "float32":
            other = "evaluate.vllm.dtype: bfloat16" if evaluate.engine == "vllm" else "evaluate.engine: transformers"
            refuse("E-recipe-dtype-engine", f"evaluate.dtype is for evaluate.engine: transformers; set {other}")
        if evaluate.stop_repeats:
            refuse("E-recipe-stop-repeats-engine", "evaluate.stop_repeats needs evaluate.engine: transformers")

    def _check_limits(self, evaluated: list[str]) -> None:
        questions = self.questions
        sections = (self.train.replay, self.train.on_policy, self.on_policy)
        trained = [*questions.train, *(name for section in sections if section for name in section.sets)]
        for split, sets in (("train", trained), ("validation", evaluated), ("test", evaluated)):
            limit = getattr(questions.limit, split)
            for name in limit if isinstance(limit, dict) else ():
                if name not in sets:
                    message = f"questions.limit.{split} names {name}, but the run uses no {split} questions of {name}"
                    refuse("E-recipe-limit-set", f"{message}; its sets are {', '.join(dict.fromkeys(sets))}")
