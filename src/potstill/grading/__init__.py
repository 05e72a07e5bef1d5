"""Answers: from what a model wrote to right, wrong, no answer or truncated.

    >>> grade("6 x 3 = 18. The answer is $18.00 a day. Question: What is 2 + 2? The answer is 4", "18").found
    '18'
    >>> grade("I do not know.", "18").grade, grade("He has 6 x", "18", stop="length").grade
    ('no answer', 'truncated')

THE PRINCIPLE: what follows the last mark decides, and only a text without any mark may use the fallback. A marked
answer that is none of the options ("None of the above", "it depends"), a hedge, or nothing at all never makes the
grader look at what stands before the mark. `grading` is where this is done, `marks.decide` says which mark is the
last one.

    >>> grade("(B) is a fact. So the answer is none of the above.", "(B)").grade, grade("So 5 * 4 =", "4").grade
    ('no answer', 'no answer')

VERSION counts the rule sets; it is stored with every score. The policies of version 4, each with its cases in
`tests/answers_cases.py`:

Where the answer is
  - Marks are "the answer is 18", "Answer: 18", a heading "Final answer" with 18 below it, "<answer>18</answer>",
    "#### 18", "\\boxed{18}" and "18 is the answer"; of a choice also "option is (A)".
  - What the mark's sentence says is read first, then, if it says nothing, the text behind it as a text without marks:
    "The answer is below. 6 x 3 = 18" is 18. "Answer:" before a sentence ("Answer: Tom has 5 apples. ...") begins a
    solution, which is read like that; "#### Step 1" is a heading.
  - A few words are a mark only if an answer stands in their sentence, because prose has them too: "I am sure that the
    answer is correct", "the answer that we look for is below".
  - "unknown", "none of these", "it depends", "cannot be determined" is no answer, whatever follows.
  - Denied: "The answer cannot be 12, so it is 13" is 13, and "The answer is not 5.", "The answer is anything but 5" and
    "5 is not right" have no answer.
  - Self-correction: the last marked answer counts. "The answer is 8. No, the answer is 4." is 4. A correction without a
    mark is not seen: "The answer is 8. Wait, it is 4." is 8.
  - Run-on: what follows the next question is not read. "The answer is 8. Question: ... The answer is 9" is 8, and
    "8 Q: ... The answer is 9" is 8 too.
  - Thoughts are not read, if anything stands outside of them: <think>, <thinking>, <reasoning>, [THINK] and their like,
    what precedes a closing tag without an opening one, and the channels of gpt-oss but the final one.
  - Without a mark: the last number, ratio or time; the letter or the yes or no that a text begins with, else the last
    one, or the option that "is correct"; the last line for words and brackets, the last lines for a list. "6 x 3 =
    18" is 18. "So 5 * 4 =" and "The total is" break off: no answer.
  - A text that was cut off (stop "length") and has no marked answer is truncated, whatever it holds, unless it went on
    with another question: then what came before is graded. So is one that was cut off in its thoughts.

Numbers
  - Equal as exact fractions: 18 = 18.00 = $18 = 18 dollars; 7,200 = 7200; 1/2 = 0.5; 1 1/2 = 1.5; 1.5 million;
    3 x 10^4; 0.(3) = 1/3.
  - Thousands: 1,000,000; 1'000'000; 1_000_000; 1.000.000; 10\\,000, 10~000, and with a no-break space; 1,00,000 as in
    India. 7 200 with a space is not joined. A decimal comma is read where it can be none of these: 2,5 and 1.234,56;
    1.234 is a little more than one.
  - A sign counts: -5 is not 5. Unicode minus signs and digits are read as ASCII ones.
  - Percent is a unit: 50% = 50, never 0.5. A dozen, k and other units are not multiplied out or converted. Two units of
    one quantity (2 hours and 30 minutes, 5 feet 6 inches) are no single number: wrong.
  - Rounding: 3.14 is right for 3.1416 and 3.1416 for 3.14; below two decimals nothing is rounded: 3 is not 3.1. What
    floating point adds to nine decimals or more is no difference: 17.999999999999996 = 18.
  - A calculation is not evaluated: "20-12 = 8" is 8, "20-12" alone is wrong. So are a power (2^10, 5²; but 10^3 is a
    way to write 1000), a root, an unknown or constant (2π, 5x, 3-i), a bound ("more than 18", x >= 18), ±5, 18 ± 2,
    "twice 9", and a hedge: "18 or 20", "18, maybe 20", "18 and 20", "between 18 and 20", "18, 20", "(1, 2)". One value
    said twice is no hedge: 0.6 or 3/5. With words between them the first counts: "18 boys and 20 girls" is 18.
  - Numbers in words count where there are no digits: "eighteen", "two and three quarters", "nine point eight".
  - Several numbers may come in any order, but all of them and no others: "5; 15" is "15 and 5". Which of them is whose
    is not looked at. They may be a list over several lines: its bullets and numbers are no minus signs and no answers.

Others
  - Ratios by value: 4:6 = 2:3 = "2 to 3" = "2 out of 3" = 2/3 = "2 boys : 3 girls".
  - "2:3 or 3:2" is no ratio, and "3:30 or 4:30" no time.
  - Times: 3:30 p.m. = 15:30; where one side does not say which half of the day, both are right. A gold answer such as
    9:10 may be a time or a ratio: then 9:10, 9 to 10 and 9/10 are right, 18:20 is not.
  - Choices by letter: (A), A, "A.", "a.", "option A", "(A) a red ball", "most likely B"; never by the words of the
    option, or by substring. "not (A)" names none; "(A), (C)", "A or B", "either C or B", "A, B and C", "A, maybe C" and
    "A, though C could be right too" are wrong.
    Without a mark, a letter on its own comes before those that its reasons speak of: "B\\n(C) is too small."
  - Yes or no, true or false, valid or invalid: the pair of the gold. "not valid", "isn't valid", "cannot be called
    valid" and "far from valid" are invalid; "valid or invalid", "yes/no", "neither", "possibly yes" and "yes, if" are
    wrong. "no" counts where it stands alone, not in "no evidence" or "no one".
  - Text: case, articles and punctuation do not count; words may follow ("Purple beads" for Purple), but not "or Red",
    "and Red", ", Red". Composed and decomposed letters are the same.
  - Exact: as it is, but for white space, Unicode form and one final period. List: the same words in the same order,
    with commas, numbers, bullets, arrows or lines between them. Brackets: the same signs.
  - Regex: the gold answer is a pattern that has to fit the marked sentence or line, or the last line, from end to
    end. It is RE2's kind, which takes linear time: no look-around or back-references; \\d and \\w are ASCII.
  - JSON: the last object or list, or the marked value; equal as values, whatever the order of fields. Of a field that
    stands twice the last counts. Words within its strings are no mark: {"next": "Question: ..."} is read whole.
  - `function: module:name`: your own function of (text, gold). Nobody but the one who runs potstill can name it.

Gold answers may be a whole solution ("... #### 72"), \\boxed{5} or "The answer is 5.": what is marked is the answer.
Algebra such as $12\\pi$ is no number.

Pure, in linear time for any text (but for functions of your own), thread-safe; no text is evaluated, and none makes
it raise.
"""

from potstill.grading import custom
from potstill.grading.grader import (
    ANSWER_TYPE_NAMES,
    BBH_ANSWER_TYPES,
    FUNCTION_TYPE,
    canonicalize_gold,
    check_task,
    grade,
    infer_answer_type,
)

VERSION = 4

__all__ = [
    "ANSWER_TYPE_NAMES",
    "BBH_ANSWER_TYPES",
    "FUNCTION_TYPE",
    "VERSION",
    "canonicalize_gold",
    "check_task",
    "custom",
    "grade",
    "infer_answer_type",
]
