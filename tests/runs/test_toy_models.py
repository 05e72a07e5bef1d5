"""The toy task: seeded, without duplicates, correct; its model cards are true, and training it twice gives the same bytes."""

from __future__ import annotations

import hashlib
import lzma
import math
import random
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill import data, demo, grading, models, prompts, storage, tokenization
from potstill.data import splits
from potstill.errors import UserError
from tools.toy_models import (
    acceptance,
    build,
    curricula,
    generic,
    model_cards,
    pretrain,
    sentences,
    skills,
    steps,
    task_mix,
    teacher_entropy,
    world,
)
from tools.toy_models.acceptance import AcceptanceTest
from tools.toy_models.problem import Arithmetic, OutOfRange, World
from tools.toy_models.words import BOXES

ROOT = Path(__file__).parents[2]
EQUATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
WIDE, EASY = World(), World(largest=20, shares=(0.6, 0.35, 0.05), frames=4, names=16)
SHIPPED = world.DEMO_WORLD
N = 400


@pytest.fixture(scope="module")
def sets() -> dict[str, list]:
    return {family: world.draw_questions(family, "test", N) for family in world.SETS}


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


def true(left: str, sign: str, right: str, value: str) -> bool:
    a, b = Fraction(left), Fraction(right)
    return {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[sign] == Fraction(value)


@pytest.mark.parametrize("family", world.SETS)
def test_questions_are_a_function_of_the_seed(family: str) -> None:
    first = world.draw_questions(family, "one", 30)
    assert first == world.draw_questions(family, "one", 30)
    assert first[:10] == world.draw_questions(family, "one", 10)
    assert first != world.draw_questions(family, "two", 30)


def test_questions_do_not_touch_the_global_generator() -> None:
    random.seed(7)
    before = random.getstate()
    for family in world.SETS:
        world.draw_questions(family, "one", 5)
    list(sentences.plain_sentences("one", 5))
    assert random.getstate() == before


@pytest.mark.parametrize("family", world.SETS)
def test_questions_are_distinct_and_their_ids_too(family: str, sets: dict[str, list]) -> None:
    own = sets[family]
    assert len({splits.canonical_question(question.text) for question in own}) == len({q.id for q in own}) == N


@pytest.mark.parametrize("family", world.SETS)
@pytest.mark.parametrize("size", [WIDE, EASY, SHIPPED])
def test_every_gold_grades_itself_right_as_the_students_write_it(family: str, size: World) -> None:
    for question in world.draw_questions(family, "gold", 200, size):
        for text in (
            prompts.format_solution(question.rationale or "", question.gold),
            prompts.format_answer(question.gold),
        ):
            assert grading.grade(text, question.gold, question.task).grade == "right", question
            flat = text.replace("\n", " ")  # as a T5 writes it
            assert grading.grade(flat, question.gold, question.task).grade == "right", question


@pytest.mark.parametrize("family", [*world.IN_DISTRIBUTION, *world.OUT_OF_DISTRIBUTION])
@pytest.mark.parametrize("size", [WIDE, EASY, SHIPPED])
def test_equations_are_true_and_lead_to_the_gold(family: str, size: World) -> None:
    for question in world.draw_questions(family, "true", 300, size):
        equations = EQUATION.findall(question.rationale or "")
        assert equations and len(equations) == (question.rationale or "").count("=")
        assert all(true(*equation) for equation in equations), question
        assert equations[-1][-1] == question.gold
        numbers = [int(number) for equation in equations for number in (equation[0], equation[2], equation[3])]
        assert min(numbers) >= 2 and max(numbers) <= size.largest
        # Every operand was told or computed before: nothing falls from the sky.
        known = re.findall(r"\d+", question.text)
        for left, _, right, value in equations:
            assert left in known and right in known, question
            known.append(value)


def test_the_shipped_world_has_enough_test_questions_of_every_family_and_generic_task() -> None:
    for family, n in world.SIZES.items():
        questions = [
            question for question in world.draw_questions(family, "potstill", n, SHIPPED) if question.split == "test"
        ]
        assert len(questions) >= 600
        counts = Counter(question.task for question in questions)
        assert min(counts.values()) >= 200, counts


def test_the_sets_hold_the_shares_of_the_world_and_still_enough() -> None:
    drawn = build.draw_all("potstill", SHIPPED, world.SIZES)
    asked = build.balance_steps(drawn)
    assert {question.id for question in asked} <= {question.id for question in drawn}
    own = [question for question in asked if question.set == "steps"]
    counts = Counter(question.rationale.count("=") for question in own)
    assert [counts[steps] / len(own) for steps in (1, 2, 3)] == pytest.approx(world.STEP_SHARES, abs=0.01)
    assert len(asked) - len(own) == sum(n for family, n in world.SIZES.items() if family != "steps")
    assert sum(question.split == "test" for question in own) >= 600


def test_steps_have_one_to_three_steps_and_often_several_first_steps() -> None:
    counts = [question.rationale.count("=") for question in world.draw_questions("steps", "count", 600)]
    assert {1, 2, 3} == set(counts) and min(counts.count(size) for size in (1, 2, 3)) > 100
    firsts: dict[int, set[str]] = {}
    for order in range(40):  # one problem, its rationale written again with other draws of the order
        rng = random.Random("shape")
        scene = steps.Scene(rng, WIDE)
        scene.sums = Arithmetic(random.Random(f"{order}"), 99)
        try:
            _, said, _ = steps.together(scene, 3)
        except OutOfRange:
            continue
        firsts.setdefault(3, set()).add(said[0])
    assert len(firsts[3]) > 1


def test_a_sentence_that_does_not_matter_is_all_that_such_a_world_adds() -> None:
    bare = replace(SHIPPED, beside=0.0)
    added: list[int] = []
    for number in range(900):
        try:
            problem = world.draw_problem("steps", random.Random(f"beside/{number}"), SHIPPED)
            other = world.draw_problem("steps", random.Random(f"beside/{number}"), bare)
        except OutOfRange:
            continue
        assert (problem.rationale, problem.answer) == (other.rationale, other.answer)
        told, known = problem.text.split(". "), other.text.split(". ")
        more = [sentence for sentence in told if sentence not in known]
        assert len(told) - len(known) == len(more) <= 1 and told[-1] == known[-1]
        assert all(re.search(r"\d", sentence) for sentence in more)
        added.append(len(more))
    assert len(added) > 300 and 0.4 < sum(added) / len(added) < 0.6


def test_a_base_student_meets_no_problem_that_is_asked_nor_its_bare_twin() -> None:
    questions = build.draw_all("potstill", SHIPPED, 300)
    own = [question for question in questions if question.set == "steps"]
    twins = world.draw_questions("steps", "potstill", 300, replace(SHIPPED, further=False, beside=0.0))
    for name, curriculum in curricula.CURRICULA.items():
        source = build.data_source_of(curriculum, "potstill", SHIPPED, questions)
        assert {splits.canonical_question(question.text) for question in (*own, *twins)} <= source.without
        assert source.world == (SHIPPED if name.startswith("teacher") else replace(SHIPPED, further=False, beside=0.0))
        served = {task for phase in curriculum.phases for task in phase.rows}
        assert name.startswith("teacher") or not served & {"steps", "answers", "single"}, "nor solves any whole problem"


def test_both_orders_of_independent_steps_occur() -> None:
    # "A has x .. and y .. . B has z .. and w .." : the first sum is sometimes that of A, sometimes that of B.
    seen = set()
    for question in world.draw_questions("steps", "orders", 3000):
        sentences = question.text.split(". ")
        if question.rationale.count("=") == 3 and " things" in question.rationale and len(sentences) > 1:
            first = EQUATION.search(question.rationale).groups()[::2]
            told = [set(re.findall(r"\d+", sentence)) for sentence in sentences[:2]]
            seen |= {place for place in (0, 1) if set(first) <= told[place] and not set(first) <= told[1 - place]}
    assert seen == {0, 1}


@pytest.mark.parametrize("family", world.OUT_OF_DISTRIBUTION)
@pytest.mark.parametrize("size", [WIDE, EASY, SHIPPED])
def test_no_sentence_template_is_shared_out_of_distribution(family: str, size: World) -> None:
    def templates(name: str) -> set[tuple[str, ...]]:
        questions = world.draw_questions(name, "far", 1500, size)
        return {found for q in questions for text in (q.text, q.rationale or "") for found in world.templates(text)}

    others = templates("steps") | {
        found for text in sentences.plain_sentences("far", 500) for found in world.templates(text)
    }
    assert not templates(family) & others


@pytest.mark.parametrize("family", world.OUT_OF_DISTRIBUTION)
def test_every_word_out_of_distribution_stands_in_the_plain_text(family: str) -> None:
    known = words(" ".join(sentences.plain_sentences("words", 3000)))
    asked = words(" ".join(f"{q.text} {q.rationale}" for q in world.draw_questions(family, "words", 1000)))
    assert not asked - known


def test_clauses_have_no_word_of_their_own() -> None:
    """Tokenizers are not trained on them."""
    source = task_mix.DataSource(WIDE, frozenset(), prompts.PAPER_STYLE)
    known = words(" ".join(sentences.plain_sentences("words", 3000))) | {many for _, many in BOXES}
    asked = words(" ".join(row.prompt.plain for row in task_mix.draw_examples("clauses", "words", 3000, source)))
    assert not asked - known


def test_plain_text_asks_nothing() -> None:
    assert not [text for text in sentences.plain_sentences("ask", 300) if "?" in text or "answer" in text]


def test_overlap_is_one_with_itself_and_small_between_families(sets: dict[str, list]) -> None:
    own = [question.text for question in sets["steps"]]
    assert world.measure_overlap(own, own) == world.Overlap(1.0, (1.0, 1.0, 1.0))
    far = build.family_overlaps(question for asked in sets.values() for question in asked)
    assert set(far) == {*world.OUT_OF_DISTRIBUTION, *world.GENERIC}
    assert all(own.templates == 0 and own.grams[2] < 0.15 < own.grams[0] for own in far.values())


def test_splits_are_disjoint_by_canonical_form_in_every_set(sets: dict[str, list]) -> None:
    place: dict[str, str] = {}
    for question in (question for own in sets.values() for question in own):
        assert place.setdefault(splits.canonical_question(question.text), question.split) == question.split
    for own in sets.values():
        assert {question.split for question in own} == {"train", "validation", "test"}


def test_the_loader_reads_the_written_sets_as_the_world_splits_them(tmp_path: Path) -> None:
    questions = build.draw_all("load", EASY, 40)
    build.write_sets(tmp_path, questions)
    for family in world.SETS:
        path = tmp_path / f"{family}.jsonl.xz"
        read = data.load_set(family, None, file=path, splits="digest", validation=world.VALIDATION, test=world.TEST)
        own = {question.id: question for question in questions if question.set == family}
        assert {question.id: question for question in read} == own


@pytest.mark.parametrize("task", task_mix.TASKS)
@pytest.mark.parametrize("style", [prompts.PAPER_STYLE, prompts.TEACHER_STYLE])
def test_nothing_that_is_asked_later_is_ever_taught(task: str, style: prompts.PromptStyle) -> None:
    # A world so small that the task mix would meet the questions by chance: without the guard it does.
    narrow = World(largest=9, shares=(1.0,), frames=1, names=3)
    asked = [q for family in world.SETS for q in world.draw_questions(family, "asked", 120, narrow)]
    forms = {splits.canonical_question(question.text) for question in asked}
    held = {form for form in forms if len(form.split()) > 3}

    def met(without: frozenset[str]) -> int:
        source = task_mix.DataSource(narrow, without, style)
        served = [f"{m.prompt.plain} {m.reply}" for m in task_mix.draw_examples(task, "other seed", 300, source)]
        taught = "\n".join(splits.canonical_question(text) for text in served)
        return sum(form in taught for form in held)

    assert met(frozenset(forms)) == 0
    if task in ("steps", "answers", "single", "extraction"):
        assert met(frozenset()) > 0


def test_the_diet_never_holds_an_out_of_distribution_sentence() -> None:
    far = {
        found
        for family in world.OUT_OF_DISTRIBUTION
        for question in world.draw_questions(family, "far", 1500)
        for found in world.templates(question.text)
    }
    for task in task_mix.TASKS:
        for row in task_mix.draw_examples(
            task, "task mix", 200, task_mix.DataSource(WIDE, frozenset(), prompts.PAPER_STYLE)
        ):
            text = row.prompt.plain.removeprefix("Q: ").removesuffix(" A:").removesuffix("\nLet's think step by step")
            assert not far & {found for part in (text, row.reply) for found in world.templates(part)}


@given(st.integers(0, 10**6), st.sampled_from(sorted(skills.SKILLS)), st.sampled_from([WIDE, EASY]))
def test_skills_are_right(number: int, skill: str, size: World) -> None:
    try:
        exercise = skills.draw_exercise(skill, random.Random(f"{number}"), size)
    except OutOfRange:
        return
    assert all(true(*equation) for equation in EQUATION.findall(exercise.reply))
    if skill == "copying":
        assert exercise.prompt == f"copy {exercise.reply}"
    if skill == "facts":
        assert exercise.reply.startswith(exercise.prompt) and EQUATION.fullmatch(exercise.reply)
    if skill == "lookup":
        told, _, asked = exercise.prompt.partition(" find ")
        pairs = dict(zip(told.split()[::2], told.split()[1::2], strict=True))
        assert exercise.reply == " ".join(f"{key} {pairs[key]}" for key in asked.split())
    if skill == "clauses":
        value, *told = (re.findall(r"\d+", clause)[0] for clause in exercise.prompt.split(";")[:-1])
        equations = [re.findall(r"\d+", equation) for equation in exercise.reply.split(" .")[:-1]]
        assert 1 <= len(equations) <= len(told) <= len(equations) + 1
        for left, right, result in equations:
            told = told[told.index(left if right == value else right) :]  # in their order; one may do nothing
            assert value in (left, right)
            value = result


@pytest.mark.parametrize("task", generic.TASKS)
def test_generic_tasks_are_right_by_another_way(task: str) -> None:
    draws = [generic.TASKS[task](random.Random(f"{task}{number}")) for number in range(200)]
    assert len({draw.text for draw in draws}) > 150
    for problem in draws:
        text, answer = problem.text, problem.answer
        if task == "sorting":
            assert answer.split() == sorted(text.split(": ")[1].split())
        elif task == "letters":
            assert answer == " ".join(word[-1] for word in text.split(": ")[1].split())
        elif task == "lookup":
            assert f"The {answer} is {text.split('What is ')[1].rstrip('?')}." in text
        elif task == "counting":
            animals = {"dog", "cat", "horse", "cow", "duck", "goat", "mouse", "owl", "fox", "sheep"}
            assert int(answer) == sum(word in animals for word in re.findall("[a-z]+", text))
        elif task == "navigate":
            *out, back = map(int, re.findall(r"\d+", text))
            assert answer == ("Yes" if sum(out) == back else "No")
        else:
            assert answer == boolean(text.removesuffix(" is").replace("(", " ").replace(")", " ").split())


def boolean(signs: list[str]) -> str:
    """From the left, as the brackets of this task always say; `not` denies the value behind it."""
    value, join, deny = None, "", False
    for sign in signs:
        if sign in ("and", "or"):
            join = sign
        elif sign == "not":
            deny = True
        else:
            literal = (sign == "True") != deny
            deny = False
            value = literal if value is None else (value and literal) if join == "and" else (value or literal)
    return str(value)


def test_a_world_that_is_too_small_says_so() -> None:
    narrow = World(largest=4, shares=(1.0,), frames=1, names=3)
    with pytest.raises(AssertionError, match="too few questions"):
        list(islice(world.problem_stream("steps", "small", narrow), 100_000))


def test_the_world_imports_nothing_heavy() -> None:
    code = (
        "import sys, tools.toy_models.world, tools.toy_models.sentences, tools.toy_models.task_mix\n"
        "heavy = ('torch', 'numpy', 'transformers', 'tokenizers', 'pydantic', 'rich')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def tiny(curriculum: curricula.Curriculum) -> curricula.Curriculum:
    phase = curricula.Phase(3, dict.fromkeys(curriculum.phases[0].rows, 2))
    shape = replace(curriculum.shape, d_model=16, layers=1, heads=2, d_ff=16, d_kv=8)
    return replace(curriculum, shape=shape, phases=(phase, phase), warmup=2)


TINY = {name: tiny(curriculum) for name, curriculum in curricula.CURRICULA.items()}


def source_of(name: str) -> task_mix.DataSource:
    return task_mix.DataSource(SHIPPED, frozenset(), curricula.CURRICULA[name].style)


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["teacher", "student", "student-causal"])
def test_a_model_is_a_function_of_the_seed_however_often_it_is_interrupted(name: str, tmp_path: Path) -> None:
    def made(folder: str, seed: str, *stops: int) -> str:
        for stop in stops:
            pretrain.pretrain(name, TINY[name], seed, source_of(name), tmp_path / folder, every=1, until=stop, n=0)
        return weights(tmp_path / folder)

    whole = made("whole", "one", 6)
    assert whole == made("parts", "one", 2, 3, 6)
    assert whole != made("other", "two", 6)
    assert storage.read_json(tmp_path / "parts" / pretrain.PROGRESS_FILE)["step"] == 6


def test_the_learning_rate_falls_at_every_rest_and_never_asks_for_the_future() -> None:
    first = curricula.Phase(20, {"facts": 2})
    own = replace(TINY["student"], phases=(first, replace(first, rest=True), first), peak=1.0, warmup=4, fall=0.5)
    alone = replace(own, phases=(first, first))
    assert [own.rate(step) for step in range(1, 41)] == [alone.rate(step) for step in range(1, 41)]
    assert own.rate(4) == own.rate(20) == own.rate(44) == 1 and own.rate(41) == 0.25
    assert own.rate(40) < 0.1 > own.rate(60)


def test_a_model_under_way_of_another_course_is_refused(tmp_path: Path) -> None:
    pretrain.pretrain("student", TINY["student"], "one", source_of("student"), tmp_path / "a", every=1, until=1, n=0)
    with pytest.raises(UserError) as caught:
        pretrain.pretrain("student", TINY["student"], "two", source_of("student"), tmp_path / "a", until=2, n=0)
    assert caught.value.code == "E-toy-partial-settings"


def test_the_first_checkpoint_is_the_same_in_another_process(tmp_path: Path) -> None:
    code = (
        "from tools.toy_models import curricula, pretrain, task_mix, world\n"
        "source = task_mix.DataSource(world.DEMO_WORLD, frozenset(), curricula.CURRICULA['student-raw'].style)\n"
        "print(pretrain.first_steps_digest('student-raw', curricula.CURRICULA['student-raw'], 'seed', source))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    raw = curricula.CURRICULA["student-raw"]
    assert done.stdout.strip() == pretrain.first_steps_digest("student-raw", raw, "seed", source_of("student-raw"))


def test_training_writes_models_that_load_with_honest_cards(tmp_path: Path) -> None:
    build.train_models(tmp_path, ["teacher", "student"], sizes=60, curricula=TINY, every=6, n=6)
    for name, family in (("teacher", "causal"), ("student", "t5")):
        student = models.open_student(tmp_path / name)
        assert student.family == family and student.tokenizer.size <= TINY[name].shape.vocabulary
        card = model_cards.read_card(tmp_path / name)
        assert card["steps"] == 6 and not card["passed"]  # six steps teach nothing
        assert card["parameters"] == sum(value.numel() for value in student.parameters())
        assert [point["step"] for point in card["curves"]] == [6]
        text = (tmp_path / name / "README.md").read_text("utf-8")
        assert "does **not** pass" in text and card["first_digest"] in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student", "teacher"]


def test_the_demo_copies_what_is_not_equal_and_touches_nothing_else(tmp_path: Path) -> None:
    demo.copy_data(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    steps, teacher = tmp_path / "sets" / "steps.jsonl", tmp_path / "teacher"
    content = steps.read_bytes()
    steps.write_bytes(content[:-9])  # as if an older version had other questions
    storage.remove(teacher)  # as if it had been killed there
    demo.copy_data(tmp_path)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    changed = {path.relative_to(tmp_path).parts[0] for path in after if path.is_file() and after[path] != before[path]}
    assert after.keys() == before.keys() and changed == {"sets", "teacher"} and steps.read_bytes() == content


@pytest.mark.slow
def test_the_demos_sets_are_what_the_generator_makes(tmp_path: Path) -> None:
    build.write_sets(tmp_path / "sets", build.draw_demo_sets())
    for path in (tmp_path / "sets").iterdir():
        assert lzma.decompress(path.read_bytes()) == lzma.decompress((demo.DATA / "sets" / path.name).read_bytes())


def test_entropy_is_looked_at_where_the_world_branches() -> None:
    assert teacher_entropy.entropy([0.0]) == 0
    assert teacher_entropy.entropy([math.log(0.5)] * 2) == pytest.approx(math.log(2))
    for question in world.draw_questions("steps", "places", 50, SHIPPED):
        text = prompts.format_solution(question.rationale or "", question.gold)
        sentences, sums = teacher_entropy.branching_offsets(text)
        assert len(sums) == len(EQUATION.findall(text)) == len(sentences)
        assert all(text[at].isupper() for at in sentences) and all(text[at].isdigit() for at in sums)


def test_presets_make_neighbours_and_numbers_visible() -> None:
    student = pretrain.init_student("student", curricula.CURRICULA["student"], "seed", source_of("student"))
    embeddings = student.model.get_input_embeddings().weight.detach().numpy()
    token = {number: student.encode(f"has {number}")[1] for number in range(SHIPPED.largest + 1)}
    assert len(set(token.values())) == SHIPPED.largest + 1

    def near(a: int, b: int) -> float:
        return float(((embeddings[token[a]] - embeddings[token[b]]) ** 2).sum())

    steps = {distance: sum(near(a, a + distance) for a in range(2, 20)) for distance in (1, 20)}
    other = sum(near(a, a + 17) for a in range(2, 20))
    assert steps[20] < other  # numbers with the same last digit share most of their waves
    bias = student.model.get_encoder().block[0].layer[0].SelfAttention.relative_attention_bias.weight
    assert bias[1, 0] > 3 and bias[17, 1] > 3 and abs(float(bias[5, 2].detach())) < 1


def shipped() -> list[Path]:
    return sorted(path.parent for folder in build.MODEL_DIRS for path in folder.glob("*/card.json"))


@pytest.mark.parametrize("folder", shipped(), ids=lambda path: path.name)
def test_a_shipped_model_is_what_its_card_says(folder: Path) -> None:
    card = model_cards.read_card(folder)
    assert card["name"] == folder.name and card["gates_version"] == acceptance.VERSION
    student = models.open_student(folder)
    assert card["parameters"] == sum(value.numel() for value in student.parameters())
    assert (folder / "README.md").read_text("utf-8") == model_cards.card_markdown(card)
    for row in card["gates"]:
        gate = AcceptanceTest(row["name"], row["n"], row["right"], row["at_least"], row["at_most"])
        assert gate.row == row
    named = {row["name"]: row for row in card["gates"]}
    if folder.name.startswith("student"):
        assert all(named[name]["at_least"] == wanted for name, wanted in acceptance.SKILLS.items())
        assert named["steps"]["at_most"] == acceptance.MAX_KNOWN and named["generic"]["at_least"] == acceptance.GENERIC
        source = source_of(folder.name)
        drawn = build.balance_steps(build.draw_all("potstill", SHIPPED, world.SIZES))
        questions = [question for question in drawn if question.set == "steps" and question.split == "validation"][:60]
        again = acceptance.problem_test(student, source, "steps", questions)
        assert again.interval[0] <= named["steps"]["right"] / named["steps"]["n"] <= again.interval[1]


def test_the_shipped_models_are_small() -> None:
    sizes = [sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) for folder in build.MODEL_DIRS]
    assert sizes[0] < 6_000_000, "in the wheel"
    assert sum(sizes) < 16_000_000, "in the repository"


def test_tokenizers_know_every_word_and_the_students_has_whole_numbers() -> None:
    source = source_of("student")
    student = pretrain.tokenizer_of(curricula.CURRICULA["student"], "tokens", source)
    for number in range(SHIPPED.largest + 1):
        assert len(student.encode(f"has {number} apples").ids) == len(student.encode("has apples").ids) + 1
    teacher = pretrain.tokenizer_of(curricula.CURRICULA["teacher"], "tokens", source)
    assert len(teacher.encode("15").ids) == 2
    for family in world.SETS:
        for question in world.draw_questions(family, "tokens", 60, SHIPPED):
            assert student.decode(student.encode(question.text).ids) == question.text
            assert teacher.decode(teacher.encode(question.text).ids) == question.text
    assert isinstance(student, tokenization.Tokenizer)
