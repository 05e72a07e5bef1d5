"""Exports of a run for other programs: a GGUF file, a CTranslate2 folder, preference pairs, tasks of
lm-evaluation-harness; and a checkpoint as a whole model or as a LoRA adapter.

Each export measures parity figures: the share of weights, token ids, prompts, verdicts or answers that another program reads
unchanged. They are printed, and `export.json` in the exported folder contains them. If something that must be equal
differs (weights, token ids, prompts or verdicts), the export fails and writes nothing.
"""
