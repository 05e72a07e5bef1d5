"""Evaluation: students answer questions, answers are graded, and scores get confidence intervals."""

from __future__ import annotations

from typing import Final

from potstill.evaluation.scores import predict_answers, score_predictions

__all__ = ["VERSION", "predict_answers", "score_predictions"]

VERSION: Final = 1  # of how answers are generated and counted, beside the versions of prompts and grading
