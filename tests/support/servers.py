"""A real server for the live tests: a tiny model made on the spot, and the process that serves it, in an environment of
its own, which `make test-servers` builds."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from potstill import models, prompts, tokenization, training
from potstill.alignment.cross_tokenizer import transfer
from potstill.models import Example, Shape
from potstill.records import Chain
from tools.toy_models.tokenizer_training import train_bpe

SMALL = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1"}  # what vLLM is told
NAMES = ("Zoë", "José", "Ann", "Tom", "Müller")


def rows(n: int) -> list[tuple[str, str]]:
    """Question and solution; names with bytes that a small vocabulary has no piece for."""
    found = []
    for i in range(n):
        a, b, name = 1 + i % 7, 1 + (i * 3) % 5, NAMES[i % len(NAMES)]
        found.append(
            (f"{name} has {a} cafés and buys {b} more. How many?", f"{a} + {b} = {a + b}.\nThe answer is {a + b}.")
        )
    return found


def model(folder: Path) -> Path:
    """A Llama of 0.3 M parameters that has half learnt its rows: its distributions are neither flat nor sharp."""
    texts = [f"{q} {a}" for q, a in rows(40)] + ["Question: Let's think step by step"] * 10
    tokenizer = train_bpe(texts, 320)
    return taught(folder, tokenizer, rows(24), steps=40)


def rambling(folder: Path) -> Path:
    """Such a model that goes on behind every second answer, and that writes a token without any text now and then."""
    asked = rows(24)
    texts = [f"{q} {a}" for q, a in rows(40)] + ["Question: Let's think step by step"] * 10
    tokenizer = train_bpe(texts, 320)
    known = [(q, a if index % 2 else f"{a}\nQuestion: {asked[index - 1][0]}") for index, (q, a) in enumerate(asked)]
    student = models.open_student(taught(folder, tokenizer, known, steps=40))
    head = student.head.weight
    with torch.no_grad():
        head[tokenizer.pad] = 0.9 * head[tokenizer.encode(" +").ids[0]]
    student.save(folder)
    return folder


def taught(folder: Path, tokenizer: tokenization.Tokenizer, known: Iterable[tuple[str, str]], steps: int) -> Path:
    """A small Llama with this tokenizer, after so many steps on all of these questions and solutions."""
    size = 32 * -(-tokenizer.size // 32)
    student = models.random_student(Shape("causal", 128, 2, 4, 256, 32, size), tokenizer, 0)
    examples = []
    for question, text in known:
        prompt = prompts.build_prompt(question, prompts.FORMATS["zero-shot-rationale"], style=prompts.TEACHER_STYLE)
        target = transfer(Chain.from_text("", 0, text, source="human"), tokenizer, "one-hot")
        examples.append(Example(tuple(student.encode(student.render(prompt))), target))
    optimizer = training.build_optimizer(student, rate=3e-3)
    schedule = training.Schedule("constant", 3e-3, 5)
    every = training.train_steps(
        student, optimizer, lambda step: [examples], first=1, last=steps, schedule=schedule, seed=0
    )
    for _ in every:
        pass
    folder.mkdir(parents=True)
    student.save(folder)
    return folder


def vllm(folder: Path, port: int, length: int = 256) -> list[str]:
    return [
        "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--served-model-name", "tiny",
        "--dtype", "float32", "--port", str(port), "--max-model-len", str(length), "--enforce-eager",
        "--max-num-seqs", "16",
        "--chat-template", "{% for m in messages %}{{ m.content }}{% endfor %}",
    ]  # fmt: skip


def llama_cpp(python: str, folder: Path, port: int, first: int | None = None, length: int = 256) -> list[str]:
    """The model as a GGUF file beside its folder, and what serves it: keys and values in 32 bits, as in the model.
    `first`: a token that it puts before every prompt."""
    file = folder.with_suffix(".gguf" if first is None else f".{first}.gguf")
    write = [python, str(Path(__file__).with_name("write_gguf.py")), str(folder), str(file)]
    subprocess.run(write if first is None else [*write, str(first)], check=True)
    return [
        "-m", "llama_cpp.server", "--model", str(file), "--model_alias", "tiny", "--port", str(port),
        "--logits_all", "true", "--n_ctx", str(length), "--n_threads", "1", "--n_threads_batch", "1",
        "--type_k", "0", "--type_v", "0", "--verbose", "false",
    ]  # fmt: skip


@contextlib.contextmanager
def served(python: str, arguments: list[str], port: int, log: Path, patience: float) -> Iterator[str]:
    """Start a server and wait until it lists its models; its address."""
    environment = {**os.environ, **SMALL}
    environment.pop("PYTHONPATH", None)
    with open(log, "wb") as out:
        process = subprocess.Popen([python, *arguments], stdout=out, stderr=out, env=environment)
    url = f"http://127.0.0.1:{port}/v1"
    try:
        until = time.monotonic() + patience
        while not _there(url):
            assert process.poll() is None, log.read_text(errors="replace")[-3000:]
            assert time.monotonic() < until, f"not there after {patience} s: {log.read_text(errors='replace')[-2000:]}"
            time.sleep(1)
        yield url
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()


def _there(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/models", timeout=5) as answer:
            return bool(json.loads(answer.read())["data"])
    except OSError:
        return False


def port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def distributions(student: models.Student, ids: list[int]) -> np.ndarray:
    """[n, v] natural log-probabilities of the token after each prefix of `ids`, in 32 bits."""
    with torch.no_grad():
        logits = student.model(input_ids=torch.tensor([ids])).logits[0].float()
        return torch.log_softmax(logits, -1).numpy()
