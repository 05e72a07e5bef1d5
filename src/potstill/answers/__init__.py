"""Answers: from what a model wrote to right, wrong, no answer or truncated.

    >>> grade("6 x 3 = 18. The answer is $18.00 a day. Question: What is 2 + 2? The answer is 4", "18").found
    '18'
    >>> grade("I do not know.", "18").grade, grade("He has 6 x", "18", stop="length").grade
    ('no answer', 'truncated')

VERSION counts the rule sets; it is stored with every score. The policies of version 3, each with its cases in
`tests/answers_cases.py`:

Where the answer is
  - A marked answer is read first: "the answer is 18", "Answer: 18", "<answer>18</answer>", "#### 18", "\\\\boxed{18}",
    "18 is the answer"; of a choice also "option is (A)".
  - A mark counts only if an answer of the gold's form stands in its sentence: "The answer is below. ..." marks nothing.
    "Answer:" and "####" before a sentence ("Answer: Tom has 5 apples. ...") mark no number: a solution begins there.
  - Self-correction: the last marked answer counts. "The answer is 8. No, the answer is 4." is 4. A correction without a
    mark is not seen: "The answer is 8. Wait, it is 4." is 8.
  - Run-on: what follows the next question is not read. "The answer is 8. Question: ... The answer is 9" is 8, and
    "8 Q: ... The answer is 9" is 8 too.
  - Thoughts: what stands before "</think>" is not read, if anything follows it.
  - Without a mark: the last number, ratio or time; the whole text if it is a choice or a yes or no, else the last one,
    or the option that "is correct"; the last line for words, lists and brackets. "6 x 3 = 18" is 18.
  - A text that was cut off (stop "length") and has no marked answer is truncated, whatever it holds, unless it went on
    with another question: then what came before is graded.

Numbers
  - Equal as exact fractions: 18 = 18.00 = $18 = 18 dollars; 7,200 = 7200; 1/2 = 0.5; 1 1/2 = 1.5; 1.5 million;
    3 x 10^4. 1,00,000 is read as in India; 7 200 and 1.200,50 are not joined.
  - A sign counts: -5 is not 5. Unicode minus signs and digits are read as ASCII ones.
  - Percent is a unit: 50% = 50, never 0.5. A dozen, k and other units are not multiplied out or converted.
  - Rounding: 3.14 is right for 3.1416 and 3.1416 for 3.14; below two decimals nothing is rounded: 3 is not 3.1. What
    floating point adds to nine decimals or more is no difference: 17.999999999999996 = 18.
  - A calculation is not evaluated: "20-12 = 8" is 8, "20-12" alone is wrong. So is a hedge: "18 or 20", "18 and 20",
    "between 18 and 20", "18, 20". With words between them the first counts: "18 boys and 20 girls" is 18.
  - Numbers in words count where there are no digits: "The answer is eighteen", "two and a half", "three quarters".
  - Several numbers may come in any order, but all of them and no others: "5; 15" is "15 and 5". Which of them is whose
    is not looked at.

Others
  - Ratios by value: 4:6 = 2:3 = "2 to 3" = "2 out of 3" = 2/3.
  - Times: 3:30 p.m. = 15:30; where one side does not say which half of the day, both are right. A gold answer such as
    9:10 may be a time or a ratio: then 9:10, 9 to 10 and 9/10 are right, 18:20 is not.
  - Choices by letter: (A), A, "A.", "a.", "option A", "(A) a red ball"; never by the words of the option, or by
    substring. "not (A)" names none, "(A), (C)" and "A or B" are wrong.
  - Yes or no, true or false, valid or invalid: the pair of the gold. "not valid" and "not deductively valid" are
    invalid, "valid or invalid" and "yes/no" wrong.
  - Text: case, articles and punctuation do not count; words may follow ("Purple beads" for Purple), but no "or", "and".
  - Exact: as it is, but for white space and one final period. List: the same words in the same order. Brackets: the
    same signs.
  - Regex: the gold answer is a pattern that has to fit the marked sentence or line, or the last line, from end to end.
  - JSON: the last object or list, or the marked value; equal as values, whatever the order of fields. Of a field that
    stands twice the last counts. Words within its strings are no mark: {"next": "Question: ..."} is read whole.
  - `function: module:name`: your own function of (text, gold). Nobody but the one who runs potstill can name it.

Pure, in linear time for any text (but for patterns and functions of your own), thread-safe; no text is evaluated.
"""

from potstill.answers import functions
from potstill.answers.forms import FORMS, FUNCTION, TASKS, canonical, check, form
from potstill.answers.grading import grade

VERSION = 3

__all__ = ["FORMS", "FUNCTION", "TASKS", "VERSION", "canonical", "check", "form", "functions", "grade"]
