"""Answers: from what a model wrote to right, wrong, no answer or truncated.

    >>> grade("6 x 3 = 18. The answer is $18.00 a day. Question: What is 2 + 2? The answer is 4", "18").found
    '18'
    >>> grade("I do not know.", "18").grade, grade("He has 6 x", "18", stop="length").grade
    ('no answer', 'truncated')

VERSION counts the rule sets; it is stored with every score. The policies of version 1:

Where the answer is
  - A marked answer is read first: "the answer is 18", "Answer: 18", "#### 18", "\\\\boxed{18}"; of a choice also
    "option is (A)".
  - A mark counts only if an answer of the gold's form stands in its sentence: "The answer is below. ..." marks nothing.
    "Answer:" and "####" before a sentence ("Answer: Tom has 5 apples. ...") mark no number: a solution begins there.
  - Self-correction: the last marked answer counts. "The answer is 8. No, the answer is 4." is 4.
  - Run-on: what follows the next question is not read. "The answer is 8. Question: ... The answer is 9" is 8.
  - Without a mark: the last number, ratio or time; the whole text if it is a choice or a yes or no, else the last one;
    the last line for words, lists and brackets. "6 x 3 = 18" is 18.
  - A text that was cut off (stop "length") and has no marked answer is truncated, whatever it holds.

Numbers
  - Equal as exact fractions: 18 = 18.00 = $18 = 18 dollars; 7,200 = 7200; 1/2 = 0.5; 1 1/2 = 1.5; 1.5 million;
    3 x 10^4.
  - A sign counts: -5 is not 5. Unicode minus signs and digits are read as ASCII ones.
  - Percent is a unit: 50% = 50, never 0.5. A dozen, k and other units are not multiplied out.
  - Rounding: 3.14 is right for 3.1416 and 3.1416 for 3.14; below two decimals nothing is rounded: 3 is not 3.1.
  - A calculation is not evaluated: "20-12 = 8" is 8, "20-12" alone is wrong. So is a hedge: "18 or 20".
  - Numbers in words count where there are no digits: "The answer is eighteen."
  - Several numbers may come in any order, but all of them and no others: "5; 15" is "15 and 5".

Others
  - Ratios by value: 4:6 = 2:3 = "2 to 3" = 2/3.
  - Times: 3:30 p.m. = 15:30; where one side does not say which half of the day, both are right. A gold answer such as
    9:10 may be a time or a ratio: then 9:10, 9 to 10 and 9/10 are right, 18:20 is not.
  - Choices by letter: (A), A, "A.", "option A", "(A) a red ball"; never by the words of the option, or by substring.
  - Yes or no, true or false, valid or invalid: the pair of the gold. "not valid" is invalid, "valid or invalid" wrong.
  - Text: case, articles and punctuation do not count; words may follow ("Purple beads" for Purple), but no "or", "and".
  - Exact: as it is, but for white space and one final period. List: the same words in the same order. Brackets: the
    same signs.

Pure, in linear time for any text, thread-safe; nothing is ever evaluated.
"""

from potstill.answers.forms import FORMS, TASKS, canonical, check, form
from potstill.answers.grading import grade

VERSION = 1

__all__ = ["FORMS", "TASKS", "VERSION", "canonical", "check", "form", "grade"]
