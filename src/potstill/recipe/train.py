"""The section of a recipe that says how the student learns, and what is replayed beside what is taught."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from potstill.recipe.section import Count, Decay, FormatName, Name, Positive, Section, Share


class Replay(Section):
    """Generic rows mixed into every step, so that what the student could do before is not lost."""

    share: Share = Field(description="of the weight of each step")
    sets: list[Name] = Field(
        default=[], description="sets whose training questions are replayed, with their rationale or the bare answer"
    )
    file: str | None = Field(default=None, description="rows with prompt and answer (JSONL or Parquet)")

    @model_validator(mode="after")
    def _complete(self) -> Replay:
        if not self.sets and self.file is None:
            raise ValueError("replay needs sets, or a file of rows with prompt and answer")
        return self


class Train(Section):
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
    def _agrees(self) -> Train:
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
