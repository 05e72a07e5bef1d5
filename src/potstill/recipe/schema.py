"""The section of a recipe that says how the chosen student is repaired.

The section of a recipe that says how the student learns, and what is replayed beside what is taught.

The sections of a recipe: every key, its type, its default. The only owner of pydantic, with `reading`.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from potstill.recipe.fields import (
    Character,
    Count,
    CustomSet,
    Decay,
    DecodingName,
    FormatName,
    Name,
    Positive,
    Probability,
    Section,
    Share,
)
from potstill.recipe.teacher import TeacherSection, VllmSection, with_vllm_batch


class OnPolicySection(Section):
    """After the choice: the chosen student answers questions of generic sets itself, and is taught by what the base (or
    another model) says of each token of these answers. What comes of it is tested beside the choice.
    """

    sets: list[Name] = Field(min_length=1, description="sets whose training questions it answers")
    scorer: str | None = Field(
        default=None,
        description="a folder: the model that scores, of the student's tokens or others; the base if not given",
    )
    divergence: Literal["reverse", "forward"] = Field(
        default="reverse",
        description="reverse: of the scorer from the student; forward: of the student from the scorer",
    )
    candidates: Positive = Field(default=20, description="of the scorer's likeliest tokens at each position")
    keep: Share | None = Field(
        default=None,
        description="share of all questions that are training ones of the task, scored by the chosen student as it was",
    )
    steps: Positive = 100
    groups: Positive = Field(default=32, description="questions a step")
    samples: Positive = Field(default=1, description="answers a question")
    temperature: float = Field(default=1.0, gt=0, description="of the answers")
    max_tokens: Positive = Field(default=256, description="most tokens of an answer")
    learning_rate: float = Field(default=1e-4, gt=0)
    warm_up: Positive = 10
    checkpoint_every: Positive = Field(default=50, description="from which an interrupted repair goes on")


class ReplaySection(Section):
    """Generic rows mixed into every step, so that what the student could do before is not lost."""

    share: Share = Field(description="of the weight of each step")
    sets: list[Name] = Field(
        default=[], description="sets whose training questions are replayed, with their rationale or the bare answer"
    )
    file: str | None = Field(default=None, description="rows with prompt and answer (JSONL or Parquet)")

    @model_validator(mode="after")
    def _complete(self) -> ReplaySection:
        if not self.sets and self.file is None:
            raise ValueError("replay needs sets, or a file of rows with prompt and answer")
        return self


class TrainSection(Section):
    formats: dict[FormatName, Count] = Field(
        default={"zero-shot-rationale": 1},
        description="quota of each format: of the groups of each step; {a: 3, b: 1} are three of a for one of b",
    )
    loss_weights: dict[FormatName, Annotated[float, Field(ge=1e-6, le=1e6)]] | None = Field(
        default=None,
        description="weight of each format in the gradient of every step, relative to the others, however many rows it"
        " has; if not given, every supervised token weighs the same",
    )
    uniform_over: Literal["questions", "chains"] = Field(
        default="questions",
        description="how chains are drawn: every question equally often, or every chain equally often (a question with"
        " 40 right chains counts forty times as much as a question with one)",
    )
    demonstrations: Positive = Field(default=4, description="in each few-shot prompt")
    replay: ReplaySection | None = None
    mass: Literal["raw", "renormalised", "tail"] = Field(
        default="raw", description="what becomes of the mass that was not seen"
    )
    steps: Positive = 1000
    groups: Positive = Field(default=32, description="groups a step: one question, one format, some chains")
    chains_per_prompt: Positive = 1
    batch_tokens: Positive = Field(default=8192, description="tokens a micro-batch; changes no result, only memory")
    learning_rate: float = Field(default=5e-4, gt=0)
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    betas: list[Decay] = Field(default=[0.9, 0.999], min_length=2, max_length=2, description="of AdamW")
    factors: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={}, description="of the learning rate, by a part of a parameter's name: {relative_attention_bias: 10}"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of the products; weights and loss stay in float32"
    )
    loss_kernel: Literal["measured", "plain", "compiled"] = Field(
        default="measured",
        description="of the loss between its products: measured takes the faster one on a GPU, and plain on a CPU",
    )
    lora: Count = Field(
        default=0, description="rank of LoRA's adapters, merged when saved (extra `lora`); 0: all weights learn"
    )
    sharding: Literal["none", "full"] = Field(
        default="none",
        description="full: weights, gradients and optimizer spread over the processes that torchrun or srun started",
    )
    peak: float | None = Field(
        default=None,
        gt=0,
        description="operations a second that the device could do, for the share that is used",
    )
    recompute: bool = Field(default=False, description="layers twice: memory of one layer, a third more time")
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warm_up: Count = 10
    hold: Count = Field(default=0, description="steps at the peak before linear and cosine fall")
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float | None = Field(default=1.0, gt=0)
    checkpoint_every: Positive = 250
    snapshot: bool = Field(
        default=True,
        description="checkpoints are copied and written beside the next steps; false: these wait, and the host's memory"
        " holds no copy (12 bytes a parameter with AdamW)",
    )
    evaluate: bool = Field(default=False, description="each checkpoint answers validation as soon as it is saved")
    stop_after: Positive | None = Field(
        default=None, description="stop when so many checkpoints came after the best by select.rule; implies evaluate"
    )

    @field_validator("precision", mode="before")
    @classmethod
    def _no_half(cls, value: Any) -> Any:
        if value in ("float16", "fp16", "half"):
            raise ValueError("float16 overflows in T5 and FlanT5; take bfloat16, or float32 where there is none")
        return value

    @model_validator(mode="after")
    def _agrees(self) -> TrainSection:
        if self.optimizer == "adafactor" and self.betas != [0.9, 0.999]:
            raise ValueError("adafactor has no betas")
        if self.sharding == "full" and (self.optimizer == "adafactor" or self.lora):
            raise ValueError("sharding: full is for optimizer: adamw without lora; set it to none")
        if self.hold and self.schedule == "constant":
            raise ValueError("hold is for a schedule that falls: linear or cosine")
        if self.hold and self.warm_up + self.hold > self.steps:
            raise ValueError(f"warm_up and hold are {self.warm_up} and {self.hold} of {self.steps} steps")
        if sum(self.formats.values()) > 1_000_000:
            raise ValueError(
                "formats are quotas; write smaller numbers in the same proportion, a million in all at most"
            )
        if self.loss_weights is not None:
            taught = {name for name, quota in self.formats.items() if quota}
            for name in sorted(taught ^ set(self.loss_weights)):
                fault = "has no weight" if name in taught else "has a weight, but no quota in train.formats"
                raise ValueError(f"loss_weights names each format that is trained, and no other: {name} {fault}")
        return self


class LimitsSection(Section):
    train: Positive | None = None
    validation: Positive | None = None
    test: Positive | None = None


class QuestionsSection(Section):
    """What is learnt and what is measured, by names of sets."""

    train: list[Name] = Field(default=["gsm8k"])
    in_distribution: list[Name] = Field(default=["gsm8k"])
    out_of_distribution: list[Name] = Field(default=["multiarith", "asdiv", "svamp"])
    generic: list[Name] = Field(default=["bbh"])
    splits: Literal["digest", "paper"] = Field(
        default="digest", description="paper: 500 validation questions a set, the rest test"
    )
    validation: Share = Field(default=0.25, description="share of a set's questions, for splits by digest")
    test: Share = 0.25
    limit: LimitsSection = Field(
        default=LimitsSection(), description="at most so many questions of each set, lowest digests first"
    )
    templates: Literal["keep", "drop"] = Field(
        default="keep",
        description="training questions that are a validation or test question but for numbers and names: keep them, "
        "with a count in the plan and on the page, or drop them",
    )


class FilterSection(Section):
    cap: Positive | None = Field(default=None, description="right chains kept a question")
    duplicates: Literal["drop", "keep"] = "drop"
    near: Share | None = Field(
        default=None, description="drop a chain that shares so much of its runs of five words with a kept one"
    )
    shortest: Count = Field(default=0, description="least characters of a chain")
    longest: Positive | None = Field(default=None, description="most characters of a chain")
    script: Literal["latin", "cyrillic", "greek", "arabic", "hebrew", "cjk", "hangul", "devanagari", "thai"] | None = (
        Field(default=None, description="drop a chain of whose letters more than a tenth are of another script")
    )
    wrong_sums: Literal["drop"] | None = Field(
        default=None, description="drop a chain that says a wrong sum, such as 3 * 4 = 13, whatever its answer"
    )
    contamination: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="drop a question that shares so much of its runs of eight words with a validation or test question",
    )


class TransferSection(Section):
    rule: Literal["one-hot", "paper", "span", "text"] = Field(
        default="text", description="how the teacher's probabilities reach the student's tokens"
    )
    rewrite: dict[Character, str] = Field(
        default={}, description="characters of a chain -> what the student is taught instead, such as ×: '*'"
    )
    marks: Literal["insert", "remove"] | None = Field(
        default=None, description="calculator marks before the results of sums in chains, as in 48/2 = <<48/2=24>>24"
    )
    drop_below: Probability = Field(default=3e-4, description="candidates less likely than this go to the tail")
    least_coverage: Probability = Field(
        default=0.2,
        description="share of positions that must have the teacher's distribution, if it gives any, or the run stops",
    )
    least_mass: Probability = Field(
        default=0.5,
        description="share of the probability that the teacher's candidates hold; if less of it reaches the positions"
        " on whole tokens of the teacher, align and the page warn",
    )


class ShapeSection(Section):
    """The size of a model that starts from random weights."""

    family: Literal["t5", "causal"]
    d_model: Positive
    layers: Positive
    heads: Positive
    d_ff: Positive
    d_kv: Positive | None = None


def _named(shape: Any) -> str:
    return "name" if isinstance(shape, str) else "numbers"


# Tagged, so that a fault in the numbers of a shape is not reported as "not a string".
ShapeOrName = Annotated[Annotated[str, Tag("name")] | Annotated[ShapeSection, Tag("numbers")], Discriminator(_named)]


class StudentSection(Section):
    model: str | None = Field(default=None, description="a folder in Hugging Face form")
    shape: ShapeOrName | None = Field(
        default=None, description="random weights of this size: numbers, or flan-t5-base, ..."
    )
    tokenizer: str | None = Field(default=None, description="a folder; the model's own if not given")
    dropout: float = Field(default=0.0, ge=0, lt=1)
    chat: Literal["auto"] | bool = Field(
        default="auto", description="prompts in the model's own chat template; auto: if a decoder-only one has any"
    )
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _complete(self) -> StudentSection:
        if self.model is None and (self.shape is None or self.tokenizer is None):
            raise ValueError("a student is a model, or a shape (random weights) with a tokenizer")
        if self.chat is True and self.model is None:
            raise ValueError("chat: true needs a model, whose folder has the template; random weights know none")
        return self

    @model_validator(mode="before")
    @classmethod
    def _folder(cls, value: Any) -> Any:
        """`student: FOLDER` is short for `student: {model: FOLDER}`."""
        return {"model": value} if isinstance(value, str) else value


class EvaluateSection(Section):
    formats: list[FormatName] = Field(default=["zero-shot-rationale"], min_length=1)
    decodings: list[DecodingName] = Field(
        default=["greedy"],
        min_length=1,
        description="greedy; vote-N or best-N of N samples; each also as NAME+calculator. The first one chooses",
    )
    test_decodings: list[DecodingName] = Field(
        default=[], description="further ones, of the base and the chosen checkpoint on test only"
    )
    temperature: float = Field(default=0.7, gt=0, description="of samples")
    engine: Literal["transformers", "ctranslate2", "ctranslate2-int8", "vllm"] = Field(
        default="transformers",
        description="what answers; CTranslate2 needs the extra `fast`, vLLM the extra `vllm`; neither has a calculator",
    )
    vllm: VllmSection = VllmSection()
    mix: list[Share] | None = Field(
        default=None,
        description="shares: of each checkpoint's weights, mixed with the base's, as further contenders",
    )
    demonstrations: str | None = Field(default=None, description="a text file of demonstrations for few-shot formats")
    max_tokens: Positive = 256
    stop_at_answer: bool = Field(
        default=False,
        description="write no further than the first sentence that holds 'answer is': for models that go on. What would"
        " follow, a correction too, does not count",
    )
    batch_tokens: Positive = 16384
    cache: str | None = Field(
        default=None,
        description="a folder that remembers texts by checkpoint, prompt and decoding, whatever grades them",
    )

    @model_validator(mode="before")
    @classmethod
    def _roomy(cls, value: Any) -> Any:
        return with_vllm_batch(value, "engine")


class SelectSection(Section):
    rule: Literal["mean-out-of-distribution"] = "mean-out-of-distribution"
    format: FormatName = "zero-shot-rationale"


class ReportSection(Section):
    read: Count = Field(
        default=6,
        description="questions to read: so many with the teacher's chains, so many of each outcome",
    )
    chain: str | None = Field(
        default=None, description="QUESTION#INDEX: the chain that the page draws; one of those to read if not given"
    )
    controls: list[Name] = Field(
        default=[], description="finished runs beside this one, from the same base on the same test questions"
    )
    licences: dict[Name, str] = Field(default={}, description="set or model -> its licence, for the page and the card")
    terms: str | None = Field(
        default=None, description="a line on the teacher's terms of use, for the page and the card"
    )
    notes: list[str] = Field(default=[], description="sentences that the page shows: sources, licences, what to expect")


class Recipe(Section):
    name: Name
    seed: Count = 0
    data: str | None = Field(default=None, description="folder of the sets; POTSTILL_DATA if not given")
    sets: dict[Name, CustomSet] = Field(default={})
    questions: QuestionsSection = QuestionsSection()
    teacher: TeacherSection = TeacherSection()
    filter: FilterSection = FilterSection()
    transfer: TransferSection = TransferSection()
    student: StudentSection = StudentSection(shape="flan-t5-base", tokenizer="tokenizers/t5")
    train: TrainSection = TrainSection()
    evaluate: EvaluateSection = EvaluateSection()
    select: SelectSection = SelectSection()
    repair: OnPolicySection | None = None
    report: ReportSection = ReportSection()

    @model_validator(mode="after")
    def _agrees(self) -> Recipe:
        if self.select.format not in self.evaluate.formats:
            raise ValueError(f"select.format {self.select.format!r} is not among evaluate.formats")
        if not any(self.train.formats.values()):
            raise ValueError("train.formats gives every format the quota 0")
        asked = self.questions
        if self.teacher.kind == "none":
            if self.repair:
                raise ValueError("repair needs a teacher: without one nothing is trained, and nothing is chosen")
            return self._measures()
        if not asked.train:
            raise ValueError("questions.train is empty: there is nothing to learn from")
        if not asked.out_of_distribution:
            raise ValueError("questions.out_of_distribution is empty: the checkpoint is chosen on these sets")
        for name in asked.out_of_distribution:
            if name in asked.train:
                raise ValueError(f"questions.out_of_distribution names {name}, which is trained on")
        self._replays()
        return self._measures()

    def _replays(self) -> None:
        for name in self.train.replay.sets if self.train.replay else ():
            if name in self.questions.train:
                raise ValueError(f"train.replay names {name}, which questions.train teaches already")
        for key, asked in (("train.replay", self.train.replay), ("repair", self.repair)):
            for name in asked.sets if asked else ():
                if name in self.questions.out_of_distribution:
                    raise ValueError(f"{key} names {name}, on which the checkpoint is chosen")

    def _measures(self) -> Recipe:
        asked = self.questions
        measured = asked.in_distribution + asked.out_of_distribution + asked.generic
        if not measured:
            raise ValueError("questions names no set to measure")
        decodings = self.evaluate.decodings + self.evaluate.test_decodings
        if self.evaluate.engine != "transformers" and any(name.endswith("+calculator") for name in decodings):
            raise ValueError("a decoding with a calculator needs evaluate.engine: transformers")
        for counts in (Counter(asked.train), Counter(measured), Counter(self.evaluate.formats), Counter(decodings)):
            for name, times in counts.items():
                if times > 1:
                    raise ValueError(
                        f"{name} is named twice: a set has one group, and a format or a decoding is evaluated once"
                    )
        return self
