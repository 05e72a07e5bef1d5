"""Fifty real questions against a live server that nobody here wrote: sampled, killed with -9 and resumed twice,
filtered, aligned to T5's tokenizer and trained for five steps. Skips without the real data and without vLLM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import servers
from potstill import storage
from potstill.data import load_set, splits
from potstill.records import Question
from potstill.storage import manifest, parquet
from tools.toy_models.tokenizer_training import train_bpe

pytestmark = pytest.mark.slow
ASKED, SAMPLES, KNOWN = 50, 8, 12
RECIPE = """
name: live
questions:
  train: [gsm8k]
  in_distribution: [gsm8k]
  out_of_distribution: [svamp]
  generic: []
  limit: {{train: {asked}, validation: 4, test: 4}}
teacher:
  kind: openai
  model: tiny
  samples: {samples}
  temperature: 0.7
  max_tokens: 48
  top_logprobs: 5
  server: {{urls: ["{url}"], samples_per_request: 2, concurrency: 4}}
student: {{shape: {{family: t5, d_model: 32, layers: 1, heads: 2, d_ff: 64}}, tokenizer: tokenizers/t5}}
train: {{steps: 5, prompts_per_step: 4, checkpoint_every: 5}}
evaluate: {{max_tokens: 8}}
"""


def taken(data: Path) -> list[Question]:
    """The questions that the recipe takes: the training questions with the lowest digests."""
    return splits.sample_by_hash([q for q in load_set("gsm8k", data) if q.split == "train"], ASKED)


def teacher(folder: Path, questions: list[Question]) -> Path:
    """A small Llama that has learnt some of the answers by heart, so that something is right."""
    tokenizer = train_bpe([f"{q.text} {q.rationale}" for q in questions], 1024)
    known = [(q.text, f"So it is {q.gold}.\nThe answer is {q.gold}") for q in questions[:KNOWN]]
    return servers.taught(folder, tokenizer, known, steps=60)


@pytest.fixture(scope="module")
def url(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    python = os.environ.get("POTSTILL_VLLM")
    if not python:
        pytest.skip("POTSTILL_VLLM names no interpreter with vLLM: run `make test-servers`")
    folder = teacher(tmp_path_factory.mktemp("served") / "model", taken(data))
    port, log = servers.port(), tmp_path_factory.mktemp("log") / "vllm.log"
    with servers.served(python, servers.vllm(folder, port, length=512), port, log, patience=900) as found:
        yield found


def test_fifty_real_questions_killed_and_resumed_twice(url: str, data: Path, tmp_path: Path) -> None:
    recipe, run = tmp_path / "live.yaml", tmp_path / "run"
    recipe.write_text(RECIPE.format(asked=ASKED, samples=SAMPLES, url=url))
    program = (
        "from pathlib import Path; from potstill import recipe, runner; "
        f"runner.run(recipe.load_recipe(Path({str(recipe)!r})), run_dir=Path({str(run)!r}), until='train')"
    )
    segment, sizes = run / "sample" / "segment-0000.jsonl", [0]
    for kill in (True, True, False):
        process = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "POTSTILL_DATA": str(data)})
        if kill:
            while process.poll() is None and not (segment.exists() and segment.stat().st_size > sizes[-1]):
                time.sleep(0.05)
            assert process.poll() is None, "it ended before it could be killed"
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            sizes.append(segment.stat().st_size)
        else:
            assert process.wait() == 0
    assert 0 < sizes[1] < sizes[2]
    chains = list(parquet.read_chains(run / "sample" / "chains.parquet"))
    assert len({chain.key for chain in chains}) == len(chains) == ASKED * SAMPLES
    assert {chain.question for chain in chains} == {question.id for question in taken(data)}
    sampled, filtered, aligned = (manifest.read_finished(run / stage) for stage in ("sample", "filter", "align"))
    assert sampled and filtered and aligned and manifest.read_finished(run / "train")
    losses = [row["loss"] for _, row in storage.read_jsonl(run / "train" / "metrics.jsonl")]
    assert filtered.counts["kept"] > 0 and len(losses) == 5
    told = {"kills after bytes": sizes[1:], **sampled.counts, "verdicts": filtered.counts["verdicts"]}
    told |= {"kept": filtered.counts["kept"], "aligned": aligned.counts["coverage"]["all"], "losses": losses}
    print(told)
