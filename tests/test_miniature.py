"""The small world: seeded, distinct, true; its families apart; its builder honest and the same twice."""

from __future__ import annotations

import hashlib
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

from potstill import answers, files, prompts, questions, splits, students, tokenizers
from potstill.miniature import build, diet, generic, plain, skills, steps, world
from potstill.miniature.problem import OutOfRange, Sums, World

EQUATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
WIDE, EASY, SHIPPED = World(), build.EASY, world.SHIPPED
N = 400


@pytest.fixture(scope="module")
def sets() -> dict[str, list]:
    return {family: world.questions(family, "test", N) for family in world.SETS}


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


def true(left: str, sign: str, right: str, value: str) -> bool:
    a, b = Fraction(left), Fraction(right)
    return {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[sign] == Fraction(value)


@pytest.mark.parametrize("family", world.SETS)
def test_questions_are_a_function_of_the_seed(family: str) -> None:
    first = world.questions(family, "one", 30)
    assert first == world.questions(family, "one", 30)
    assert first[:10] == world.questions(family, "one", 10)
    assert first != world.questions(family, "two", 30)


def test_questions_do_not_touch_the_global_generator() -> None:
    random.seed(7)
    before = random.getstate()
    for family in world.SETS:
        world.questions(family, "one", 5)
    list(plain.sentences("one", 5))
    assert random.getstate() == before


@pytest.mark.parametrize("family", world.SETS)
def test_questions_are_distinct_and_their_ids_too(family: str, sets: dict[str, list]) -> None:
    own = sets[family]
    assert len({splits.canonical(question.text) for question in own}) == len({q.id for q in own}) == N


@pytest.mark.parametrize("family", world.SETS)
@pytest.mark.parametrize("size", [WIDE, EASY, SHIPPED])
def test_every_gold_grades_itself_right_as_the_students_write_it(family: str, size: World) -> None:
    for question in world.questions(family, "gold", 200, size):
        for text in (prompts.solution(question.rationale or "", question.gold), prompts.bare(question.gold)):
            assert answers.grade(text, question.gold, question.task).grade == "right", question
            flat = text.replace("\n", " ")  # as a T5 writes it
            assert answers.grade(flat, question.gold, question.task).grade == "right", question


@pytest.mark.parametrize("family", [*world.IN_DISTRIBUTION, *world.OUT_OF_DISTRIBUTION])
@pytest.mark.parametrize("size", [WIDE, EASY, SHIPPED])
def test_equations_are_true_and_lead_to_the_gold(family: str, size: World) -> None:
    for question in world.questions(family, "true", 300, size):
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
        asked = [question for question in world.questions(family, "potstill", n, SHIPPED) if question.split == "test"]
        assert len(asked) >= 600
        counts = Counter(question.task for question in asked)
        assert min(counts.values()) >= 200, counts


def test_steps_have_one_to_three_steps_and_often_several_first_steps() -> None:
    counts = [question.rationale.count("=") for question in world.questions("steps", "count", 600)]
    assert {1, 2, 3} == set(counts) and min(counts.count(size) for size in (1, 2, 3)) > 100
    firsts: dict[int, set[str]] = {}
    for order in range(40):  # one problem, its rationale written again with other draws of the order
        rng = random.Random("shape")
        scene = steps.Scene(rng, WIDE)
        scene.sums = Sums(random.Random(f"{order}"), 99)
        try:
            _, said, _ = steps.together(scene, 3)
        except OutOfRange:
            continue
        firsts.setdefault(3, set()).add(said[0])
    assert len(firsts[3]) > 1


def test_both_orders_of_independent_steps_occur() -> None:
    # "A has x .. and y .. . B has z .. and w .." : the first sum is sometimes that of A, sometimes that of B.
    seen = set()
    for question in world.questions("steps", "orders", 3000):
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
        own = world.questions(name, "far", 1500, size)
        return {found for q in own for text in (q.text, q.rationale or "") for found in world.templates(text)}

    others = templates("steps") | {found for text in plain.sentences("far", 500) for found in world.templates(text)}
    assert not templates(family) & others


@pytest.mark.parametrize("family", world.OUT_OF_DISTRIBUTION)
def test_every_word_out_of_distribution_stands_in_the_plain_text(family: str) -> None:
    known = words(" ".join(plain.sentences("words", 3000)))
    asked = words(" ".join(f"{q.text} {q.rationale}" for q in world.questions(family, "words", 1000)))
    assert not asked - known


def test_plain_text_asks_nothing() -> None:
    assert not [text for text in plain.sentences("ask", 300) if "?" in text or "answer" in text]


def test_overlap_is_one_with_itself_and_small_between_families(sets: dict[str, list]) -> None:
    own = [question.text for question in sets["steps"]]
    assert world.overlap(own, own) == world.Overlap(1.0, (1.0, 1.0, 1.0))
    far = build.distances(question for asked in sets.values() for question in asked)
    assert set(far) == {*world.OUT_OF_DISTRIBUTION, *world.GENERIC}
    assert all(own.templates == 0 and own.grams[2] < 0.15 < own.grams[0] for own in far.values())


def test_splits_are_disjoint_by_canonical_form_in_every_set(sets: dict[str, list]) -> None:
    place: dict[str, str] = {}
    for question in (question for own in sets.values() for question in own):
        assert place.setdefault(splits.canonical(question.text), question.split) == question.split
    for own in sets.values():
        assert {question.split for question in own} == {"train", "validation", "test"}


def test_the_loader_reads_the_written_sets_as_the_world_splits_them(tmp_path: Path) -> None:
    asked = build.questions("load", EASY, 40)
    build.write_sets(tmp_path, asked)
    for family in world.SETS:
        path = tmp_path / "sets" / f"{family}.jsonl"
        read = questions.load(family, None, file=path, splits="digest", validation=world.VALIDATION, test=world.TEST)
        own = {question.id: question for question in asked if question.set == family}
        assert {question.id: question for question in read} == own


@pytest.mark.parametrize("dish", diet.DISHES)
@pytest.mark.parametrize("style", [prompts.PAPER, prompts.TEACHER])
def test_nothing_that_is_asked_later_is_ever_taught(dish: str, style: prompts.Style) -> None:
    # A world so small that the diet would meet the questions by chance: without the guard it does.
    narrow = World(largest=9, shares=(1.0,), frames=1, names=3)
    asked = [q for family in world.SETS for q in world.questions(family, "asked", 120, narrow)]
    forms = {splits.canonical(question.text) for question in asked}
    held = {form for form in forms if len(form.split()) > 3}

    def met(without: frozenset[str]) -> int:
        kitchen = diet.Kitchen(narrow, without, style)
        served = [f"{m.prompt.plain} {m.reply}" for m in diet.serve(dish, "other seed", 300, kitchen)]
        taught = "\n".join(splits.canonical(text) for text in served)
        return sum(form in taught for form in held)

    assert met(frozenset(forms)) == 0
    if dish in ("steps", "answers", "single", "extraction"):
        assert met(frozenset()) > 0


def test_the_diet_never_holds_an_out_of_distribution_sentence() -> None:
    far = {
        found
        for family in world.OUT_OF_DISTRIBUTION
        for question in world.questions(family, "far", 1500)
        for found in world.templates(question.text)
    }
    for dish in diet.DISHES:
        for meal in diet.serve(dish, "diet", 200, diet.Kitchen(WIDE, frozenset(), prompts.PAPER)):
            text = meal.prompt.plain.removeprefix("Q: ").removesuffix(" A:").removesuffix("\nLet's think step by step")
            assert not far & {found for part in (text, meal.reply) for found in world.templates(part)}


@given(st.integers(0, 10**6), st.sampled_from(sorted(skills.SKILLS)), st.sampled_from([WIDE, EASY]))
def test_skills_are_right(number: int, skill: str, size: World) -> None:
    try:
        exercise = skills.draw(skill, random.Random(f"{number}"), size)
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
        list(islice(world.stream("steps", "small", narrow), 100_000))


def test_the_world_imports_nothing_heavy() -> None:
    code = (
        "import sys, potstill.miniature.world, potstill.miniature.plain, potstill.miniature.diet\n"
        "heavy = ('torch', 'numpy', 'transformers', 'tokenizers', 'pydantic', 'rich')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def tiny(course: build.Course) -> build.Course:
    phase = build.Phase(3, dict.fromkeys(course.phases[0].rows, 2))
    shape = replace(course.shape, d_model=16, layers=1, heads=2, d_ff=16, d_kv=8)
    return replace(course, shape=shape, phases=(phase, phase), warmup=2)


def digest(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def test_building_twice_gives_the_same_bytes_and_models_that_load(tmp_path: Path) -> None:
    courses = {name: tiny(course) for name, course in build.COURSES.items()}
    sizes = dict.fromkeys(world.SETS, 12)
    for name in ("one", "two"):
        build.build(tmp_path / name, seed="twice", courses=courses, sizes=sizes)
    build.build(tmp_path / "other", seed="other", courses=courses, sizes=sizes)
    one, two, other = (digest(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two != other
    for name, family in (("teacher", "causal"), ("student", "t5")):
        student = students.open(tmp_path / "one" / name)
        assert student.family == family
        assert student.tokenizer.size <= build.COURSES[name].shape.vocabulary
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["built.json", "sets", "student", "teacher"]


def test_building_again_keeps_what_is_whole_and_replaces_what_is_not(tmp_path: Path, monkeypatch) -> None:
    trained: list[str] = []
    student = students.initialise(
        replace(build.STUDENT.shape, d_model=8, layers=1, heads=1, d_ff=8, d_kv=8, vocabulary=60),
        tokenizers.train_unigram(["2 + 2 = 4"], 60),
        seed=1,
    )
    monkeypatch.setattr(build, "train", lambda name, *_: trained.append(name) or student)
    sizes = dict.fromkeys(world.SETS, 3)
    build.build(tmp_path, sizes=sizes)
    build.build(tmp_path, sizes=sizes)
    assert trained == ["teacher", "student"]
    files.remove(tmp_path / "student")  # as if the first build had been killed there
    build.build(tmp_path, sizes=sizes)
    assert trained == ["teacher", "student", "student"]
    build.build(tmp_path, seed="other", sizes=sizes)
    assert trained[3:] == ["teacher", "student"]


def test_tokenizers_know_every_word_and_the_students_has_whole_numbers() -> None:
    kitchen = diet.Kitchen(EASY, frozenset(), prompts.PAPER)
    student = build.tokenizer_of(build.STUDENT, "tokens", kitchen)
    for number in range(2, EASY.largest + 1):
        assert len(student.encode(f"has {number} apples").ids) == len(student.encode("has apples").ids) + 1
    teacher = build.tokenizer_of(build.TEACHER, "tokens", kitchen)
    assert len(teacher.encode("15").ids) == 2
    for family in world.SETS:
        for question in world.questions(family, "tokens", 60, EASY):
            assert student.decode(student.encode(question.text).ids) == question.text
            assert teacher.decode(teacher.encode(question.text).ids) == question.text
    assert isinstance(student, tokenizers.Tokenizer)
