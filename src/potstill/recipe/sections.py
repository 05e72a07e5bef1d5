"""The sections of a recipe: every key, its type, its default. The only owner of pydantic, with `reading`."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from potstill.recipe.replay import Replay
from potstill.recipe.section import (
    Character,
    Count,
    Decay,
    DecodingName,
    FormatName,
    Name,
    Positive,
    Probability,
    Section,
    Share,
)
from potstill.recipe.sets import OwnSet
from potstill.recipe.teacher import Teacher


class Limits(Section):
    train: Positive | None = None
    validation: Positive | None = None
    test: Positive | None = None


class Questions(Section):
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
    limit: Limits = Field(default=Limits(), description="at most so many questions of each set, lowest digests first")


class Filter(Section):
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
    contamination: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="drop a question that shares so much of its runs of eight words with a validation or test question",
    )


class Transfer(Section):
    rule: Literal["one-hot", "paper", "span", "text"] = Field(
        default="text", description="how the teacher's probabilities reach the student's tokens"
    )
    rewrite: dict[Character, str] = Field(
        default={}, description="characters of a chain -> what the student is taught instead, such as ×: '*'"
    )
    drop_below: Probability = Field(default=3e-4, description="candidates less likely than this go to the tail")
    least_coverage: Probability = Field(
        default=0.2,
        description="share of positions that must have the teacher's distribution, if it gives any, or the run stops",
    )


class Shape(Section):
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
ShapeOrName = Annotated[Annotated[str, Tag("name")] | Annotated[Shape, Tag("numbers")], Discriminator(_named)]


class Student(Section):
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
    def _complete(self) -> Student:
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


class Train(Section):
    formats: dict[FormatName, Count] = Field(default={"zero-shot-rationale": 1}, description="quota of each format")
    demonstrations: Positive = Field(default=4, description="in each few-shot prompt")
    replay: Replay | None = None
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
    def _agrees(self) -> Train:
        if self.optimizer == "adafactor" and self.betas != [0.9, 0.999]:
            raise ValueError("adafactor has no betas")
        if self.sharding == "full" and (self.optimizer == "adafactor" or self.lora):
            raise ValueError("sharding: full is for optimizer: adamw without lora; set it to none")
        if self.hold and self.schedule == "constant":
            raise ValueError("hold is for a schedule that falls: linear or cosine")
        if self.hold and self.warm_up + self.hold > self.steps:
            raise ValueError(f"warm_up and hold are {self.warm_up} and {self.hold} of {self.steps} steps")
        return self


class Evaluate(Section):
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
    engine: Literal["transformers", "ctranslate2", "ctranslate2-int8"] = Field(
        default="transformers", description="what answers; CTranslate2 needs the extra `fast` and has no calculator"
    )
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


class Select(Section):
    rule: Literal["mean-out-of-distribution"] = "mean-out-of-distribution"
    format: FormatName = "zero-shot-rationale"


class Report(Section):
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
    sets: dict[Name, OwnSet] = Field(default={})
    questions: Questions = Questions()
    teacher: Teacher = Teacher()
    filter: Filter = Filter()
    transfer: Transfer = Transfer()
    student: Student = Student(shape="flan-t5-base", tokenizer="tokenizers/t5")
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    select: Select = Select()
    report: Report = Report()

    @model_validator(mode="after")
    def _agrees(self) -> Recipe:
        if self.select.format not in self.evaluate.formats:
            raise ValueError(f"select.format {self.select.format!r} is not among evaluate.formats")
        if not any(self.train.formats.values()):
            raise ValueError("train.formats gives every format the quota 0")
        asked = self.questions
        if self.teacher.kind == "none":
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
            if name in self.questions.out_of_distribution:
                raise ValueError(f"train.replay names {name}, on which the checkpoint is chosen")

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
