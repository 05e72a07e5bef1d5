"""What a report shows of the texts that the student wrote during training and after the selection.

    summary = summarize_own_texts(RunFiles(run_dir, recipe))
    summary.steps[0].measures["right"], summary.samples[0].text

Samples are for a reader who checks the grader: they come from the last quarter of the steps, from all parts of it, with one
text per question. Of the texts with the same reward, those with the highest advantage come first, because the other texts
for their question were wrong.

    >>> question = Question("m/1", "m", "train", "What is 1 + 1?", "2", "number")
    >>> texts = [OwnText(step, 0, f"m/{step % 3}", 0, "2", (5,), "end", "right", 1.0) for step in range(1, 9)]
    >>> [text.step for text in pick_own_texts(texts, 3)], len(pick_own_texts(texts, 6))
    ([3, 4, 8], 3)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, Final

from potstill import storage
from potstill.data import run_questions
from potstill.grading import grade
from potstill.recipe import Recipe
from potstill.recipe.on_policy import RewardsSection
from potstill.records import Question, Verdict
from potstill.report.model import OwnTextSample, OwnTextStep, OwnTextSummary, StalenessRow
from potstill.report.run_files import RunFiles
from potstill.training import on_policy
from potstill.training.own_texts import OWN_TEXTS_FILE, OwnText, iterate_own_texts
from potstill.training.scorer_models import describe_scorer

SAMPLES: Final = {True: 6, False: 4}  # number of samples that are right, and that are not
STALENESS_ROWS: Final = 8  # at most, in the table by staleness


def summarize_own_texts(files: RunFiles) -> OwnTextSummary | None:
    """The summary of a run's own texts; None for a recipe without `train.on_policy`."""
    section = files.recipe.train.on_policy
    if section is None:
        return None
    formats = {name: f"own/{name}" for name, scorer in section.scorers.items() if scorer.model is not None}
    steps = tuple(_step_from_metrics(row, formats) for row in files.metrics)
    summary = OwnTextSummary(
        about=tuple(_describe_own_texts(files.recipe)),
        window=section.refresh_every,
        cap=section.ratio_cap if section.stores_probabilities else None,
        steps=steps,
        staleness=tuple(group_by_staleness(steps)),
    )
    return _with_samples(files, summary, section.sets)


def summarize_repair_texts(files: RunFiles) -> OwnTextSummary | None:
    """The summary of the texts that the chosen student wrote after the selection; None for a recipe without `on_policy`."""
    section = files.recipe.on_policy
    if section is None:
        return None
    trained = files.recipe.questions.train if section.keep is not None else []
    formats = {name: name for name in (on_policy.ROLLOUT_FORMAT, on_policy.TASK_FORMAT)}
    rows = (row for _, row in storage.read_jsonl(files.run_dir / "repair" / "metrics.jsonl"))
    steps = tuple(_step_from_metrics(row, formats) for row in rows)
    summary = OwnTextSummary(tuple(_describe_repair_texts(files.recipe)), 1, None, steps, stage="repair")
    return _with_samples(files, summary, list(dict.fromkeys([*section.sets, *trained])))


def _with_samples(files: RunFiles, summary: OwnTextSummary, sets: Sequence[str]) -> OwnTextSummary:
    """The summary with the samples. sets: those whose training questions the student answers."""
    written = [row.step for row in summary.steps if row.measures]
    if not written:
        return summary
    quarter = -(-len(written) // 4)
    first, last = written[-quarter], written[-1]
    late = [
        replace(text, ids=(), logprobs=None)
        for text in iterate_own_texts(files.run_dir / summary.stage / OWN_TEXTS_FILE)
        if first <= text.step <= last and text.reward is not None
    ]
    right = [text for text in late if text.reward == 1]
    others = [text for text in late if text.reward != 1]
    questions = {row.id: row for row in run_questions.read_questions(files.run_dir, sets, "train")}
    picked = [*pick_own_texts(right, SAMPLES[True]), *pick_own_texts(others, SAMPLES[False])]
    samples = tuple(_sample(text, questions[text.question]) for text in picked)
    return replace(summary, first=first, last=last, right=len(right), counted=len(late), samples=samples)


def _step_from_metrics(row: Mapping[str, Any], formats: Mapping[str, str]) -> OwnTextStep:
    """A step from its line in metrics.jsonl. formats: scorer -> the format of its texts."""
    written = row.get("written", {})
    divergences = {name: row["losses"][format] for name, format in formats.items() if format in row["losses"]}
    return OwnTextStep(row["step"], divergences, written if written.get("texts") else {})


def pick_own_texts(texts: Sequence[OwnText], most: int) -> list[OwnText]:
    """At most `most` of the texts, by step, each for another question. The same texts give the same choice."""
    if not texts:
        return []
    ranked = sorted(texts, key=lambda text: (-text.advantage, _digest(text)))
    first, span = min(text.step for text in texts), 1 + max(text.step for text in texts) - min(t.step for t in texts)
    picked: dict[str, OwnText] = {}
    parts = set[int]()
    for may_share in (False, True):  # one from each part of the steps, then any
        for text in ranked:
            part = (text.step - first) * most // span
            if len(picked) < most and text.question not in picked and (may_share or part not in parts):
                picked[text.question] = text
                parts.add(part)
    return sorted(picked.values(), key=lambda text: (text.step, text.slot, text.index))


def _digest(text: OwnText) -> str:
    return hashlib.sha256(f"{text.question}/{text.step}/{text.slot}/{text.index}".encode()).hexdigest()


def _sample(text: OwnText, question: Question) -> OwnTextSample:
    assert text.reward is not None, "only texts that count are shown"
    # Again, for the answer that the grader found; a text that was cut inside a thought has none.
    verdict = grade(text.text, question.gold, question.task, text.stop)
    verdict = verdict if verdict.grade == text.grade or text.grade is None else Verdict(text.grade)
    return OwnTextSample(text.step, question, text.text, verdict, text.reward, text.advantage)


def group_by_staleness(steps: Iterable[OwnTextStep]) -> list[StalenessRow]:
    """The importance ratios by staleness, in at most STALENESS_ROWS rows; empty if no text was written ahead.

    >>> rows = [OwnTextStep(n, {}, {"staleness": n % 2, "ratio": 1.0 + n % 2, "capped": 0.0}) for n in (2, 3, 4)]
    >>> [(row.first, row.steps, row.ratio) for row in group_by_staleness(rows)]
    [(0, 2, 1.0), (1, 1, 2.0)]
    """
    by_staleness: dict[int, list[Mapping[str, int | float]]] = {}
    for row in steps:
        if "staleness" in row.measures and "ratio" in row.measures:
            by_staleness.setdefault(int(row.measures["staleness"]), []).append(row.measures)
    if not by_staleness:
        return []
    size = -(-(max(by_staleness) + 1) // STALENESS_ROWS)
    rows = []
    for first in range(0, max(by_staleness) + 1, size):
        found = [one for at in range(first, first + size) for one in by_staleness.get(at, ())]
        if found:
            means = (fmean(one[name] for one in found) for name in ("ratio", "capped"))
            rows.append(StalenessRow(first, min(first + size - 1, max(by_staleness)), len(found), *means))
    return rows


def _describe_own_texts(recipe: Recipe) -> Iterator[str]:
    """How the texts were written and scored, in sentences."""
    section = recipe.train.on_policy
    assert section is not None, "the recipe has the section train.on_policy"
    many = f", {section.samples} for each" if section.samples > 1 else ""
    if isinstance(section.share, dict):
        points = ", ".join(f"{100 * share:g} % at step {step}" for step, share in sorted(section.share.items()))
        yield f"During training, the student wrote the texts for a share of the prompts itself{many}: {points}."
    else:
        yield f"During training, the student wrote the texts for {100 * section.share:g} % of the prompts itself{many}."
    if section.refresh_every > 1:
        yield f"The texts of {section.refresh_every} steps were written at once, with the weights before the first of them."
    if section.max_kl is not None:
        yield f"They were written again when the divergence since then exceeded {section.max_kl:g} nats per token."
    for name, entry in section.scorers.items():
        scorer, sets = describe_scorer(recipe, name), ", ".join(entry.sets)
        part = ", and scores only what comes after the thoughts" if entry.part == "answer" else ""
        if scorer is None:
            yield f"The texts for questions of {sets} ({name}) have only rewards."
        else:
            yield f"The scorer {name}, for questions of {sets}, is {scorer}{part}."
    if any(entry.rewards for entry in section.scorers.values()):
        yield _describe_rewards(section.rewards)


def _describe_rewards(rewards: RewardsSection) -> str:
    """What the grader's verdicts changed, in one sentence."""
    effects = []
    if rewards.wrong_weight != 1:
        weight = rewards.wrong_weight
        effects.append(
            f"the divergence counted {weight:g} times on wrong texts" if weight else "wrong texts had no divergence"
        )
    if rewards.advantage_weight:
        effects.append(f"the group-relative advantage of right texts counted with weight {rewards.advantage_weight:g}")
    if rewards.wrong_penalty:
        effects.append(f"wrong texts lost an advantage of {rewards.wrong_penalty:g}")
    if not effects:
        return "The grader's verdicts on these texts changed nothing."
    return f"Rewards from the grader: {', '.join(effects)}."


def _describe_repair_texts(recipe: Recipe) -> Iterator[str]:
    """How the texts after the selection were written and scored, in sentences."""
    section = recipe.on_policy
    assert section is not None, "the recipe has the section on_policy"
    many = f", {section.samples} for each" if section.samples > 1 else ""
    scorer = "the base student" if section.scorer is None else section.scorer
    yield (
        f"After the selection, the chosen student answered {section.prompts_per_step} training questions of"
        f" {', '.join(section.sets)} in every step{many}, and learnt from {scorer} (divergence: {on_policy.ROLLOUT_FORMAT})."
    )
    if section.keep is not None:
        count = on_policy.task_questions_per_step(recipe)
        yield (
            f"It also answered {count} training questions of its task, and learnt from itself as it was chosen (divergence:"
            f" {on_policy.TASK_FORMAT}), so that it keeps what it learnt."
        )
