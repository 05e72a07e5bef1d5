"""Exports of a finished run for other programs: a GGUF file, a CTranslate2 folder, preference pairs, and tasks of
lm-evaluation-harness.

Each export measures a parity figure: how much of what the other program reads equals what the run has. It is printed, and
it is in `export.json` in the exported folder. An export is refused, and leaves nothing behind, if something that has to be
equal is not: weights, token ids, prompts or verdicts.
"""
