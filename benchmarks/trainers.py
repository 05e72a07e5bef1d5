"""Trainers of other projects for `training.py`, in their own environment.

    python -m venv ENV
    ENV/bin/pip install torch==2.13.0 transformers==5.23.0 accelerate datasets trl==1.16.0

Reads a job (JSON) from the first line of standard input, then takes one optimizer step for each further line and prints
its cost. Imports nothing of potstill. Every step sees all rows of the job, in micro-batches of `rows` rows that the
trainer's sampler groups by length.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch


def main() -> None:
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what trainers print goes to stderr
    torch.set_num_threads(1)
    job = json.loads(sys.stdin.readline())
    try:
        trainer = WAYS[job["what"]](job)
    except ImportError as fault:
        print(json.dumps({"why": f"not installed: {fault}"}), file=results, flush=True)
        return
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        """Waits for a line before each step, and prints what the step cost."""

        def __init__(self) -> None:
            self.base, self.began, self.losses = held(), time.process_time(), []

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **others: Any) -> None:
            if logs and "loss" in logs:
                seconds = time.process_time() - self.began
                row = {"s": seconds, "loss": logs["loss"], "MiB": peak() - self.base}
                print(json.dumps(row), file=results, flush=True)
                if not sys.stdin.readline().strip():
                    control.should_training_stop = True
                self.began = time.process_time()

    trainer.add_callback(Clock())
    print(json.dumps({"ready": True}), file=results, flush=True)
    sys.stdin.readline()
    trainer.train()


def settings(job: dict[str, Any]) -> dict[str, Any]:
    rows, at_once = len(job["examples"]), job["rows"]
    return {
        "output_dir": job["folder"],
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": -(-rows // at_once),
        "num_train_epochs": job["steps"],
        "train_sampling_strategy": "group_by_length",
        "learning_rate": job["rate"],
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "bf16": job["bf16"],
        "gradient_checkpointing": False,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
    }


def sequence_to_sequence(job: dict[str, Any]) -> Any:
    from datasets import Dataset
    from transformers import (
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(job["folder"])
    model = AutoModelForSeq2SeqLM.from_pretrained(job["folder"], dtype=torch.float32)
    rows = [{"input_ids": prompt, "labels": target} for prompt, target in job["examples"]]
    return Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(**settings(job)),
        train_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
    )


def supervised(job: dict[str, Any]) -> Any:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    file, end = str(Path(job["folder"]) / "tokenizer.json"), "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=file, eos_token=end, pad_token=end)
    model = AutoModelForCausalLM.from_pretrained(job["folder"], dtype=torch.float32)
    rows = [
        {"input_ids": [*prompt, *target], "completion_mask": [0] * len(prompt) + [1] * len(target)}
        for prompt, target in job["examples"]
    ]
    config = SFTConfig(
        **settings(job), max_length=None, completion_only_loss=True, loss_type=job["loss"], packing=False
    )
    return SFTTrainer(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


WAYS = {"Seq2SeqTrainer": sequence_to_sequence, "SFTTrainer": supervised}


def held() -> float:
    """Resident memory in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
