"""Own texts: the texts that the student writes during training, with their grades, rewards and sampling probabilities.

    train/own_texts.jsonl      one line per text, in the order in which they were written

    >>> text = OwnText(1, 0, "m/1", 0, "The answer is 2", (5, 6), "end", "right", 1.0)
    >>> summarize_texts([text, replace(text, index=1, ids=(5,), grade="wrong", reward=0.0)])["right"]
    0.5

A text is a function of the weights, the seed, the step and its place in the step: `write_texts` gives every request a key
of these. The stored texts of a step make a resume exact where texts are written several steps ahead
(`train.on_policy.refresh_every`), because the weights that wrote them are gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from pathlib import Path
from statistics import fmean
from typing import Any, Final, NamedTuple, cast

from potstill import inference, storage
from potstill.inference import Decode, Engine, Generation, Request, SampleKey
from potstill.models import Example
from potstill.records import Grade, StopReason
from potstill.training.distributed import share_work
from potstill.training.scorers import hard_example

VERSION: Final = 2  # of own_texts.jsonl, and of the measures of its texts in metrics.jsonl
OWN_TEXTS_FILE: Final = "own_texts.jsonl"


@dataclass(frozen=True, slots=True)
class OwnText:
    """A text that the student wrote. A line of own_texts.jsonl.

    slot      place of the question among the questions that the student answers in this step
    index     index of the text among the texts for the slot's question
    ids       token ids, without the end token
    grade     its grade; None for a question without rewards
    reward    1 or 0; None if the text does not count
    weight, advantage  see `rewards.RewardEffect`
    logprobs  natural log-probabilities of the tokens of its target under the weights that wrote it; None if they are not
              needed
    """

    step: int
    slot: int
    question: str
    index: int
    text: str
    ids: tuple[int, ...]
    stop: StopReason
    grade: Grade | None = None
    reward: float | None = None
    weight: float = 1.0
    advantage: float = 0.0
    logprobs: tuple[float, ...] | None = None


class Slot(NamedTuple):
    """A question that the student answers in a step.

    prompt  token ids of the student's prompt
    format  the format under which the loss is reported
    """

    step: int
    number: int
    question: str
    prompt: tuple[int, ...]
    format: str

    def key(self, index: int) -> SampleKey:
        """The key of a text, which determines its random numbers."""
        return f"{self.step}/{self.number}/{self.question}", index


def write_texts(
    engine: Engine, slots: Sequence[Slot], decode: Decode, *, samples: int, batch_tokens: int, vocabulary: int
) -> dict[tuple[int, int], list[OwnText]]:
    """The texts of every slot, by (step, number). All processes share the batches, and get all texts.

    samples     number of texts per slot
    vocabulary  the tokenizer's size. The head may have more rows; a text is cut before the first such id

    A text without any token that is not the end of a text is left out.
    """
    requests = [Request(slot.key(index), slot.prompt) for slot in slots for index in range(samples)]
    batches = inference.batch_requests(requests, batch_tokens, max_tokens=decode.max_tokens)

    def write(batch: tuple[int, ...]) -> list[Generation]:
        return engine.generate([requests[index] for index in batch], decode)

    texts = {text.key: text for batch in share_work(batches, write) for text in batch}
    result: dict[tuple[int, int], list[OwnText]] = {}
    for slot in slots:
        for index in range(samples):
            text = texts[slot.key(index)]
            ids = tuple(takewhile(lambda token: token < vocabulary, text.ids))
            stop: StopReason = "end" if text.stop == "end" and len(ids) == len(text.ids) else "length"
            if ids or stop == "end":
                own = OwnText(slot.step, slot.number, slot.question, index, text.text, ids, stop)
                result.setdefault((slot.step, slot.number), []).append(own)
    return result


def to_example(text: OwnText, slot: Slot, end: int) -> Example:
    """The text as an example with hard targets. end: the id of the end token."""
    return hard_example(slot.prompt, text.ids, end if text.stop == "end" else None, text.question, slot.format)


def summarize_texts(texts: Iterable[OwnText]) -> dict[str, float]:
    """Measures of a step's own texts, for metrics.jsonl.

    texts      number of texts; the texts of generic questions without rewards count here and in the next three measures
    length     mean number of tokens
    truncated  share that reached the token limit
    right, no_answer, reward  share of right texts and of complete texts without an answer, and mean reward, of the texts
               with a grade or a reward
    """
    texts = list(texts)
    if not texts:
        return {"texts": 0}
    grades = [text.grade for text in texts if text.grade is not None]
    rewards = [text.reward for text in texts if text.reward is not None]
    measures = {
        "texts": len(texts),
        "length": fmean(len(text.ids) for text in texts),
        "truncated": fmean(text.stop != "end" for text in texts),
    }
    if grades:
        measures |= {name: fmean(grade == kind for grade in grades) for name, kind in _GRADES.items()}
    return measures | ({"reward": fmean(rewards)} if rewards else {})


_GRADES: Final[dict[str, Grade]] = {"right": "right", "no_answer": "no answer"}


def read_own_texts(path: Path) -> list[OwnText]:
    """The stored texts; empty if there is no file."""
    return list(iterate_own_texts(path)) if path.exists() else []


def iterate_own_texts(path: Path) -> Iterator[OwnText]:
    """The stored texts, one at a time."""
    with storage.as_format_errors(path):
        for _, row in storage.read_jsonl(path):
            yield _from_json(row)


def _from_json(row: Mapping[str, Any]) -> OwnText:
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    return OwnText(**cast(Any, values))


def truncate_own_texts(path: Path, last_step: int) -> None:
    """Remove the texts of later steps than `last_step`, and an incomplete last line."""
    if not path.exists():
        return
    rows = list(storage.read_complete_lines(path))
    kept = [row for row in rows if row["step"] <= last_step]
    storage.write_jsonl(path, kept)


def rows_of(texts: Iterable[OwnText]) -> list[dict[str, Any]]:
    """The texts as lines of own_texts.jsonl."""
    return [asdict(text) for text in texts]


def with_logprobs(texts: Sequence[OwnText], logprobs: Sequence[tuple[float, ...]]) -> list[OwnText]:
    return [replace(text, logprobs=values) for text, values in zip(texts, logprobs, strict=True)]
