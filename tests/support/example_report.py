"""A small invented report for the tests of the page and of its figures."""

from __future__ import annotations

import math
from dataclasses import replace

from potstill.records import (
    END,
    Chain,
    Checkpoint,
    Choice,
    Prediction,
    Question,
    RetentionBound,
    Score,
    TargetKind,
    Verdict,
)
from potstill.report.model import (
    AlignmentSummary,
    Calibration,
    Comparison,
    ConfidenceBin,
    ControlRun,
    Cost,
    Interval,
    KindCoverage,
    OwnTextSample,
    OwnTextStep,
    OwnTextSummary,
    QuotedScore,
    ReportData,
    ReportExample,
    RuleChoice,
    SetGroup,
    SourceSummary,
    StalenessRow,
    TaskScore,
)

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script></style></pre></title><svg onload=alert(1)>",
    "{{ 7 * 7 }} {% raw %} {# no #}",
    "left \u202etfel\u202c \u2066x\u2069 \u200ehidden",
    "nul \x00 bell \x07 half \ud800 not \uffff",
    '=HYPERLINK("http://x")',
    "]]> --> &lt;b&gt; &amp;",
    "javascript:alert(1)",
]
GROUPS: dict[str, SetGroup] = {
    "gsm8k": "in-distribution",
    "multiarith": "out-of-distribution",
    "asdiv": "out-of-distribution",
    "svamp": "out-of-distribution",
    "bbh": "generic",
}
KIND_SIZES: dict[TargetKind, float] = {"same": 3.0, "merged": 2.0, "split": 1.9, "hard": 0.5, "end": 0.001}
STEPS = (0, 100, 200, 300, 400, 500, 600)
SHARES = {
    "gsm8k": (0.06, 0.17, 0.24, 0.29, 0.33, 0.35, 0.36),
    "multiarith": (0.22, 0.35, 0.49, 0.56, 0.60, 0.58, 0.57),
    "asdiv": (0.20, 0.28, 0.33, 0.36, 0.38, 0.37, 0.36),
    "svamp": (0.18, 0.25, 0.31, 0.35, 0.36, 0.36, 0.34),
    "bbh": (0.35, 0.29, 0.22, 0.17, 0.13, 0.10, 0.08),
}
TEST_SIZE = {"gsm8k": 1319, "multiarith": 400, "asdiv": 1805, "svamp": 500, "bbh": 2311}
RIGHT = "Tom has 3 boxes of 12 eggs, so 3 x 12 = 36 eggs. He sells 9 of them, so 36 - 9 = 27.\nThe answer is 27"
WRONG = "Tom has 3 boxes and 12 eggs, so 3 + 12 = 15 eggs. 15 - 9 = 6.\nThe answer is 6"
RECIPE = """\
name: example
seed: 7
data: null
collect:
  sets: [gsm8k, multiarith, asdiv, svamp, bbh]
sample:
  teacher: {kind: local, folder: models/teacher}
  samples: 4
  temperature: 0.5
train:
  steps: 600
  learning_rate: 5.0e-4
"""


def score(
    name: str, step: int, share: float, n: int, split: str = "validation", format: str = "zero-shot-rationale"
) -> Score:
    right = round(share * n)
    p, z = right / n, 1.96
    centre, half = (
        (p + z * z / 2 / n) / (1 + z * z / n),
        z * math.sqrt(p * (1 - p) / n + z * z / 4 / n / n) / (1 + z * z / n),
    )
    bounds = max(0.0, centre - half), min(1.0, centre + half)
    left = n - right
    macro = p - 0.01 if name == "bbh" else None
    return Score(Checkpoint(step), name, split, format, "greedy", n, right, left // 5, left // 9, p, *bounds, macro)  # type: ignore[arg-type]


def comparison(name: str, format: str = "zero-shot-rationale", at: tuple[int, int] = (0, 4)) -> Comparison:
    base, chosen = (score(name, STEPS[i], SHARES[name][i], TEST_SIZE[name], "test", format) for i in at)
    value = chosen.accuracy - base.accuracy
    half = 1.96 * math.sqrt(0.3 / TEST_SIZE[name])
    won, lost = (chosen.right - base.right + 9, 9) if value > 0 else (7, base.right - chosen.right + 7)
    return Comparison(base, chosen, Interval(value, value - half, value + half), won, lost)


def control(name: str, training: str, gain: float, format: str) -> ControlRun:
    """A control whose accuracies lie between those of the base and of the chosen checkpoint."""
    rows = []
    for each in GROUPS:
        full = comparison(each)
        share = full.base.accuracy + gain * full.difference.value
        reached = score(each, 600, share, TEST_SIZE[each], "test", format)
        value = reached.accuracy - full.base.accuracy
        rows.append(Comparison(full.base, reached, Interval(value, value - 0.02, value + 0.02), 50, 20))
    return ControlRun(name, training, 600, tuple(rows))


def question(name: str, number: int, text: str, split: str = "test") -> Question:
    return Question(f"{name}/{number}", text, "27", name, split, name)  # type: ignore[arg-type]


def prediction(question: Question, text: str) -> Prediction:
    right = text == RIGHT
    return Prediction(
        question.id, question.set, question.task, text, "end", "right" if right else "wrong", "27" if right else "6"
    )


def sampled(question: str, index: int, text: str) -> Chain:
    pieces = [piece.encode() for piece in text.split(" ")]
    tokens = [pieces[0], *(b" " + piece for piece in pieces[1:])]
    steps = [
        [(token, math.log(0.9 - 0.5 * (at % 4 == 1))), (b" the", math.log(0.05))] for at, token in enumerate(tokens)
    ]
    return Chain.from_tokens(
        question, index, tokens, [*steps, [(END, -0.01)]], source="local:teacher", semantics="tempered"
    )


def own_texts() -> OwnTextSummary:
    """The texts that a student wrote from step 101 on, two steps at a time."""
    asked = question(
        "gsm8k", 5, "Tom has 3 boxes of 12 eggs each. He sells 9 eggs. How many eggs has he left?", "train"
    )
    steps = []
    for step in range(1, 601):
        right = 0.4 - 0.4 * math.exp(-step / 150)
        measures = {"texts": 16, "length": 80 + 9 * math.sin(step), "truncated": 0.02, "no_answer": 0.3 - right / 2}
        measures |= {"right": right, "reward": right + 0.01, "surprise": 0.2 + math.exp(-step / 90)}
        measures |= {"staleness": 1 - step % 2, "ratio": 1.02, "capped": 0.01, "clipped": 0.0, "kl": 0.004}
        divergences = {"big": 3 * math.exp(-step / 100), "base": 0.1 + step / 4000}
        steps.append(OwnTextStep(step, divergences, measures) if step > 100 else OwnTextStep(step, {}, {}))
    return OwnTextSummary(
        *(("The scorer big is the teacher.",), 2, 2.0, tuple(steps)),
        staleness=(StalenessRow(0, 0, 250, 1.0, 0.0), StalenessRow(1, 1, 250, 1.04, 0.02)),
        **{"first": 476, "last": 600, "right": 780, "counted": 2000},
        samples=(
            OwnTextSample(480, asked, RIGHT, Verdict("right", "27"), 1.0, 0.7),
            OwnTextSample(590, asked, WRONG, Verdict("wrong", "6"), 0.0, -0.7),
        ),
    )


def repair_texts() -> OwnTextSummary:
    """The texts that it wrote in ten steps after the selection."""
    during, steps = own_texts(), []
    for step in range(1, 11):
        measures = {"texts": 24, "length": 70.0, "truncated": 0.0, "no_answer": 0.1, "right": 0.4, "reward": 0.4}
        measures |= {"surprise": 0.3, "ratio": 1.0, "capped": 0.0, "clipped": 0.0, "kl": 0.0}
        steps.append(OwnTextStep(step, {"own": 1 / step, "kept": 0.01 * step}, measures))
    changes = {"first": 8, "last": 10, "right": 25, "counted": 60, "staleness": (), "window": 1, "cap": None}
    return replace(during, about=("The base scored them.",), steps=tuple(steps), stage="repair", **changes)


def example() -> ReportData:
    """A run that did everything."""
    text = "Tom has 3 boxes of 12 eggs each. He sells 9 eggs at the market. How many eggs does he have left?"
    train, won, lost = question("gsm8k", 1, text, "train"), question("svamp", 2, text), question("bbh", 3, text)
    failed = question("asdiv", 4, text + " Or not?\n(A) some\n(B) none")
    chains = (
        (sampled(train.id, 0, RIGHT), Verdict("right", "27")),
        (sampled(train.id, 1, WRONG), Verdict("wrong", "6")),
        (sampled(train.id, 2, RIGHT), Verdict("right", "27", "duplicate")),
        (sampled(train.id, 3, RIGHT[:60]), Verdict("truncated")),
    )
    return ReportData(
        name="example",
        student="flan-t5-base (248 M parameters)",
        teacher="local:teacher",
        training="chains of teacher",
        groups=GROUPS,
        recipe=RECIPE,
        choice=Choice(
            Checkpoint(400),
            "mean accuracy over the out-of-distribution validation sets",
            "zero-shot-rationale",
            "greedy",
            tuple(
                (Checkpoint(step), sum(SHARES[name][at] for name in ("multiarith", "asdiv", "svamp")) / 3)
                for at, step in enumerate(STEPS)
            ),
            (Checkpoint(300), Checkpoint(400)),
            equal=(Checkpoint(400),),
            optimism=0.012,
            bounds=(
                RetentionBound(
                    *("generic", 22.0),
                    tuple((Checkpoint(s), 100 * (0.35 - lost)) for s, lost in zip(STEPS, SHARES["bbh"], strict=True)),
                ),
            ),
        ),
        rules=(
            RuleChoice("mean-out-of-distribution", Checkpoint(400), 0.4467, tuple(map(comparison, GROUPS))),
            RuleChoice(
                *("without-retain", Checkpoint(500), 0.4367),
                *(tuple(comparison(name, at=at) for name in GROUPS) for at in ((0, 5), (5, 4))),
            ),
            RuleChoice("in-distribution", Checkpoint(600), 0.36),
        ),
        comparisons=(
            *(comparison(name) for name in GROUPS),
            *(comparison(name, "few-shot-rationale") for name in GROUPS),
        ),
        controls=(
            control("example-answers", "bare answers", 0.2, "zero-shot-answer"),
            control("example-rationales", "the sets' own rationales", 0.7, "zero-shot-rationale"),
        ),
        quoted=(
            QuotedScore("another model", "a paper, table 2", "gsm8k", 0.412, 1319),
            QuotedScore("a third", "a blog", "bbh", 0.3),
        ),
        validation=tuple(
            score(name, step, share * factor, 500, format=format)
            for format, factor in (("zero-shot-rationale", 1.0), ("few-shot-rationale", 0.9))
            for name, shares in SHARES.items()
            for step, share in zip(STEPS, shares, strict=True)
        ),
        losses=tuple((step, 0.5 + 2.5 * math.exp(-step / 80) + 0.08 * math.sin(step * 1.7)) for step in range(1, 601)),
        kind_losses=tuple(
            (step, {kind: size * math.exp(-step / 200) + size / 9 for kind, size in KIND_SIZES.items()})
            for step in range(1, 601)
        ),
        own_texts=own_texts(),
        repair_texts=repair_texts(),
        tasks=tuple(
            TaskScore("bbh", f"bbh/{task}", format, "answer" not in format, 250, base, chosen)
            for format, less in (("zero-shot-answer", 20), ("zero-shot-rationale", 0))
            for task, base, chosen in (("navigate", 120 - less, 50), ("date_understanding", 60, 61), ("snarks", 90, 0))
        ),
        calibrations=(
            Calibration(
                *("teacher", "local:teacher"),
                (ConfidenceBin(0.2, 0.4, 900, 0.31, 240), ConfidenceBin(0.8, 1.0, 6373, 0.97, 6100)),
                *(0.02, 0.31, 0.254),
            ),
            Calibration("chosen", "gsm8k", (ConfidenceBin(0.4, 0.6, 1319, 0.5, 435),), 0.17, 0.9),
        ),
        sources=(
            SourceSummary(
                "local:teacher",
                "tempered",
                7273,
                29092,
                {"right": 18572, "wrong": 9100, "no answer": 420, "truncated": 1000},
                {"duplicate": 3120, "cap": 200},
                15252,
                6503,
                Interval(0.638, 0.629, 0.647),
                {0: 770, 1: 1200, 2: 1601, 3: 1702, 4: 2000},
            ),
        ),
        alignment=AlignmentSummary(
            "t5",
            "span",
            {
                "all": (
                    KindCoverage("same", 812_345, 0.976),
                    KindCoverage("merged", 41_200, 0.943),
                    KindCoverage("split", 120_034, 0.981),
                    KindCoverage("hard", 30_122, 1.0),
                    KindCoverage("end", 15_252, 1.0),
                ),
                "digits": (
                    KindCoverage("same", 90_345, 0.982),
                    KindCoverage("merged", 21_003, 0.941),
                    KindCoverage("hard", 9_320, 1.0),
                ),
                "line starts": (KindCoverage("same", 40_102, 0.951), KindCoverage("hard", 11_004, 1.0)),
                "unknown": (KindCoverage("hard", 312, 1.0),),
            },
            covered=0.955,
            unknown={"×": 290, "{": 22},
            rewrites={"÷": "/"},
        ),
        costs=(
            Cost("sample", "chains", 29092),
            Cost("sample", "tokens written by the teacher", 3_812_004),
            Cost("sample", "requests to the teacher's server", 7273),
            Cost("sample", "money, in the currency of teacher.budget.prices", 3.25),
            Cost("train", "steps", 600),
            Cost("train", "tokens read", 21_004_112),
            Cost("test", "answers on test", 25_340),
        ),
        figure_chain=ReportExample(train, chains[:1]),
        outcomes={
            name: {"won": 100, "lost": 200, "still wrong": 100, "still right": 100}
            if name == "bbh"
            else {"won": 75 + at, "lost": 10, "still wrong": 350, "still right": 65 - at}
            for at, name in enumerate(GROUPS)
        },
        examples=(
            ReportExample(train, chains, prompt="Question: " + text + "\nLet's think step by step"),
            ReportExample(won, (), prediction(won, WRONG), prediction(won, RIGHT), "Q: " + text),
            ReportExample(lost, (), prediction(lost, RIGHT), prediction(lost, WRONG), "Q: " + text),
            ReportExample(failed, (), prediction(failed, WRONG), prediction(failed, WRONG), "Q: " + text),
        ),
        versions=(("potstill", "0.1.0"), ("prompts", "1"), ("answers", "1")),
        notes=("These numbers are made up to try the page.",),
        seed=7,
    )


def _renamed(row: Comparison, names: dict[str, str]) -> Comparison:
    base, chosen = (replace(each, set=names.get(each.set, each.set)) for each in (row.base, row.chosen))
    return replace(row, base=base, chosen=chosen)


def hostile(text: str) -> ReportData:
    """The example, with the text wherever a report has one that came from data, a model or a user."""
    full = example()
    groups = {(text if name == "svamp" else name): group for name, group in full.groups.items()}
    renamed = {"svamp": text}
    asked = Question(text, text, text, text, "test", text, text)
    content = text.encode("utf-8", "surrogatepass")
    chain = Chain(text, text, 0, content)
    unsure = [[(token, -1.5), (content, -0.5), (END, -3.0)] for token in (content, content)]
    drawn = Chain.from_tokens(text, 1, [content, content], unsure, source=text)
    answer = Prediction(text, text, text, text, "end", "wrong", text)
    assert full.choice and full.alignment and full.own_texts
    own = OwnTextSample(1, asked, text, Verdict("right", text), 1.0, 0.5)
    own_steps = tuple(OwnTextStep(step, {text: 1.0 / step}, {"texts": 1, "right": 1.0}) for step in (1, 2, 3))
    return replace(
        full,
        own_texts=replace(full.own_texts, about=(text,), steps=own_steps, samples=(own,)),
        outcomes={renamed.get(name, name): counts for name, counts in full.outcomes.items()},
        name=text,
        student=text,
        teacher=text,
        groups=groups,
        recipe=text,
        choice=replace(
            full.choice, rule=text, weights=((text, 1.0),), bounds=(replace(full.choice.bounds[0], name=text),)
        ),
        rules=tuple(
            replace(rule, name=text, tested=(), price=tuple(_renamed(row, renamed) for row in rule.price))
            for rule in full.rules
        ),
        comparisons=tuple(
            replace(
                each,
                base=replace(each.base, set=renamed.get(each.base.set, each.base.set)),
                chosen=replace(each.chosen, set=renamed.get(each.chosen.set, each.chosen.set)),
            )
            for each in full.comparisons
        ),
        validation=tuple(replace(each, set=renamed.get(each.set, each.set)) for each in full.validation),
        tasks=tuple(replace(row, task=text, format=text) for row in full.tasks[:1]),
        calibrations=tuple(replace(row, of=text) for row in full.calibrations),
        sources=(replace(full.sources[0], name=text, dropped={text: 3}),),
        alignment=replace(full.alignment, tokenizer=text, rule=text, unknown={text: 3}, rewrites={text: text}),
        figure_chain=ReportExample(asked, ((drawn, Verdict("right", text)),)),
        controls=tuple(
            replace(
                each,
                name=text,
                training=text,
                comparisons=tuple(
                    replace(
                        row,
                        base=replace(row.base, set=renamed.get(row.base.set, row.base.set)),
                        chosen=replace(row.chosen, set=renamed.get(row.chosen.set, row.chosen.set)),
                    )
                    for row in each.comparisons
                ),
            )
            for each in full.controls
        ),
        examples=(
            ReportExample(
                asked,
                ((chain, Verdict("wrong", text, text)), (drawn, Verdict("wrong", text, text))),
                answer,
                answer,
                text,
            ),
        ),
        quoted=(QuotedScore(text, text, text, 0.5),),
        versions=((text, text),),
        notes=(text,),
    )
