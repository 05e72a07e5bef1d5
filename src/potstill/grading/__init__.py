"""Grading: the verdict on a model's text, given a gold answer: right, wrong, no answer or truncated.

    >>> grade("6 x 3 = 18. The answer is $18.00 a day. Question: What is 2 + 2? The answer is 4", "18").answer
    '18'
    >>> grade("I do not know.", "18").grade, grade("He has 6 x", "18", stop="length").grade
    ('no answer', 'truncated')

THE PRINCIPLE: the text after the last marker ("the answer is") counts; only a text without markers is searched for an
answer without one. If the marked answer is none of the options ("none of the above", "it depends"), a hedge, or empty,
nothing before the marker replaces it.

    >>> grade("(B) is a fact. So the answer is none of the above.", "(B)").grade, grade("So 5 * 4 =", "4").grade
    ('no answer', 'no answer')

To add an answer type, add an entry to the table in `answer_types`. A data set with its own grader needs none: its
questions may have the task `function: module:name` (see `grader`).

VERSION counts the sets of rules; it is stored with every score. The rules of version 4, with their cases in
`tests/support/grading_cases.py`:

Where the answer is
  - Markers are "the answer is 18", "Answer: 18", a heading "Final answer" with 18 below it, "<answer>18</answer>",
    "#### 18", "\\boxed{18}" and "18 is the answer"; for a choice also "option is (A)".
  - The sentence of the marker is read first. If it has no answer, the text after it is read as a text without markers:
    "The answer is below. 6 x 3 = 18" is 18. So is a solution after "Answer:" ("Answer: Tom has 5 apples. ...").
    "#### Step 1" is a heading.
  - A few words are a marker only if their sentence has an answer, because they also occur in prose: "I am sure that the
    answer is correct", "the answer that we look for is below".
  - "unknown", "none of these", "it depends" and "cannot be determined" are no answer, whatever follows.
  - Denial: "The answer cannot be 12, so it is 13" is 13. "The answer is not 5.", "The answer is anything but 5" and
    "5 is not right" have no answer.
  - Self-correction: the last marked answer counts. "The answer is 8. No, the answer is 4." is 4. A correction without a
    marker is ignored: "The answer is 8. Wait, it is 4." is 8.
  - Run-on: the next question ends the text. "The answer is 8. Question: ... The answer is 9" is 8, and so is
    "8 Q: ... The answer is 9".
  - Reasoning does not count if the text has anything else: <think>, <thinking>, <reasoning>, [THINK] and similar tags,
    the text before a closing tag without an opening one, and all channels of gpt-oss except the final one.
  - Without a marker: the last number, ratio or time; the letter or the yes or no that the text begins with, else the
    last one, or the option that "is correct"; the last line for text and brackets, the last lines for a list.
    "6 x 3 = 18" is 18. "So 5 * 4 =" and "The total is" break off: no answer.
  - A truncated text (stop "length") without a marked answer is "truncated", even if it has a number, unless the model
    went on with another question: then the text before that question is graded. A text that was truncated in its
    reasoning is "truncated", too.

Numbers
  - Equal as exact fractions: 18 = 18.00 = $18 = 18 dollars; 7,200 = 7200; 1/2 = 0.5; 1 1/2 = 1.5; 1.5 million;
    3 x 10^4; 0.(3) = 1/3.
  - Thousands: 1,000,000; 1'000'000; 1_000_000; 1.000.000; 10\\,000, 10~000, and with a no-break space; 1,00,000 as in
    India. 7 200 with a space is two numbers. A comma is a decimal comma if it cannot separate thousands: 2,5 and
    1.234,56; 1.234 is a little more than one.
  - Signs count: -5 is not 5. Unicode minus signs and digits are read as ASCII ones.
  - Percent is a unit: 50% = 50, never 0.5. A dozen, k and other units are not multiplied or converted. Two units of one
    quantity (2 hours and 30 minutes, 5 feet 6 inches) are no single number: wrong.
  - Rounding: 3.14 is right for 3.1416 and 3.1416 for 3.14, but numbers with fewer than two decimals are not rounded: 3
    is not 3.1. Floating-point noise from the ninth decimal on is ignored: 17.999999999999996 = 18.
  - Calculations are not evaluated: "20-12 = 8" is 8, "20-12" alone is wrong. The same holds for a power (2^10, 5²; but
    10^3 is a way to write 1000), a root, an unknown or constant (2π, 5x, 3-i), a bound ("more than 18", x >= 18), ±5,
    18 ± 2, "twice 9", and a hedge: "18 or 20", "18, maybe 20", "18 and 20", "between 18 and 20", "18, 20", "(1, 2)".
    The same value twice is no hedge: 0.6 or 3/5. With words in between the first counts: "18 boys and 20 girls" is 18.
  - Numbers in words count if there are no digits: "eighteen", "two and three quarters", "nine point eight".
  - Several numbers may have any order, but none may be missing or added: "5; 15" is "15 and 5". Which number belongs
    to whom is not checked. They may form a list over several lines; its bullets and item numbers do not count.

Others
  - Ratios by value: 4:6 = 2:3 = "2 to 3" = "2 out of 3" = 2/3 = "2 boys : 3 girls". "2:3 or 3:2" is no ratio.
  - Times: 3:30 p.m. = 15:30; without a.m. or p.m. both are right. "3:30 or 4:30" is no time. A gold answer such as 9:10
    may be a time or a ratio: then 9:10, 9 to 10 and 9/10 are right, and 18:20 is not.
  - Choices by letter: (A), A, "A.", "a.", "option A", "(A) a red ball", "most likely B"; never by the words of an
    option. "not (A)" has no answer; "(A), (C)", "A or B", "either C or B", "A, B and C", "A, maybe C" and "A, though C
    could be right too" are wrong. Without a marker, a letter alone at the beginning counts more than letters in the
    reasons after it: "B\\n(C) is too small."
  - Yes or no, true or false, valid or invalid: the pair of the gold answer. "not valid", "isn't valid", "cannot be
    called valid" and "far from valid" are invalid; "valid or invalid", "yes/no", "neither", "possibly yes" and "yes,
    if" are wrong. "no" counts if it stands alone, not in "no evidence" or "no one".
  - Text: case, articles and punctuation do not count; words may follow ("Purple beads" for Purple), but not "or Red",
    "and Red", ", Red". Composed and decomposed letters are equal.
  - Exact: equal except for white space, Unicode form and one final period. List: the same words in the same order,
    separated by commas, numbers, bullets, arrows or lines. Brackets: the same characters.
  - Regex: the gold answer is a pattern that must match the whole marked sentence or line, or the whole last line. It is
    matched by RE2 in linear time: no look-around, no back-references; \\d and \\w are ASCII.
  - JSON: the last object or list, or the marked value; equal as values, with fields in any order. The last of two equal
    fields counts. Words inside strings are no marker: {"next": "Question: ..."} is read whole.
  - `function: module:name`: your own function of (text, gold). Only the user of potstill can name it, no file can.

Gold answers may be a whole solution ("... #### 72"), \\boxed{5} or "The answer is 5.": the marked answer counts.
Algebra such as $12\\pi$ is no number.

Grading is pure and thread-safe and takes time linear in any text (except your own functions). No text is evaluated,
and none raises.
"""

from potstill.grading.answer_types import ANSWER_TYPES
from potstill.grading.grader import (
    BBH_ANSWER_TYPES,
    FUNCTION_TYPE,
    canonicalize_gold,
    check_task,
    function_digest,
    grade,
    infer_answer_type,
    parse_function_name,
)

VERSION = 4

__all__ = [
    "ANSWER_TYPES", "BBH_ANSWER_TYPES", "FUNCTION_TYPE", "VERSION", "canonicalize_gold", "check_task", "function_digest",
    "grade", "infer_answer_type", "parse_function_name",
]  # fmt: skip
