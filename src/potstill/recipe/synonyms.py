"""Other names of recipe keys: names in other tools (TRL, Hugging Face's TrainingArguments, LLaMA-Factory, torchtune, vLLM,
OpenAI), and earlier names of the keys.

    >>> find_synonym(("train", "lr"))
    'train.learning_rate'
    >>> find_synonym(("evaluate", "max_new_tokens")), find_synonym(("teacher", "max_new_tokens"))
    ('evaluate.max_tokens', 'teacher.max_tokens')
    >>> RENAMED_KEYS["train.clip"]
    'train.max_grad_norm'
"""

from __future__ import annotations

from typing import Final

_BATCH: Final = (
    "= train.prompts_per_step is the number of questions per step; train.batch_tokens limits the tokens per micro-batch"
)
_STEPS: Final = "= train.steps is the number of optimizer steps, each with train.prompts_per_step questions"
_EVALUATE: Final = (
    "= train.evaluate: true evaluates every checkpoint on validation; train.checkpoint_every sets the interval"
)
_LORA: Final = "= train.lora is the rank of the adapters and their only setting"
_TRACK: Final = "= the run folder has the metrics; send them with `potstill track RUN --to tensorboard|wandb|trackio`"
_DATA: Final = "= write `sets: {NAME: {file: FILE.jsonl}}` and name the set in questions.train"
_LENGTH: Final = "= no row is truncated; train.batch_tokens limits the tokens per micro-batch"

# Meaning -> its synonyms. A meaning is a key; or several keys, of which the key in the same section applies; or, if no key
# has this meaning, a sentence after `=`.
_SYNONYMS_BY_MEANING: Final = {
    "train.learning_rate": "lr",
    "train.optimizer": "optim optimiser",
    _BATCH: "batch_size train_batch_size per_device_train_batch_size micro_batch_size mini_batch_size "
    "per_device_batch_size gradient_accumulation_steps",
    "evaluate.batch_tokens": "per_device_eval_batch_size eval_batch_size",
    _STEPS: "num_train_epochs num_epochs epochs",
    "train.steps on_policy.steps": "max_steps num_steps",
    "train.steps": "max_steps_per_epoch total_steps train_steps",
    "train.warmup_steps on_policy.warmup_steps": "warmup warmup_steps num_warmup_steps",
    "= train.warmup_steps is a number of steps, not a ratio": "warmup_ratio",
    "train.schedule": "lr_scheduler lr_scheduler_type scheduler",
    "train.betas": "adam_beta1 adam_beta2 beta1 beta2",
    "train.gradient_checkpointing": "gradient_checkpointing enable_gradient_checkpointing "
    "activation_checkpointing enable_activation_checkpointing",
    "= write train.precision: bfloat16": "bf16 pure_bf16 mixed_precision",
    "= write train.precision: bfloat16 (float16 overflows in T5), or keep float32": "fp16",
    "train.precision evaluate.dtype teacher.dtype teacher.vllm.dtype evaluate.vllm.dtype": "torch_dtype dtype",
    "train.checkpoint_every on_policy.checkpoint_every": "save_steps save_every checkpoint_steps save_every_n_steps",
    "train.checkpoint_every": "save_strategy",
    "= all checkpoints are kept, for the selection; train.checkpoint_every sets the interval": "save_total_limit",
    _EVALUATE: "eval_steps eval_strategy evaluation_strategy do_eval",
    "train.early_stopping_patience": "early_stopping early_stopping_patience",
    "select.rule": "metric_for_best_model",
    "= the stage `select` always selects a checkpoint by select.rule": "load_best_model_at_end",
    "train.max_grad_norm": "max_grad_norm clip_grad clip_grad_norm grad_clip gradient_clip_val gradient_clipping",
    "train.weight_decay": "wd",
    _LORA: "use_lora use_peft lora_alpha lora_dropout lora_target lora_target_modules target_modules finetuning_type",
    "train.lora": "lora_r lora_rank",
    "train.load_in_4bit": "load_in_4bit quantize quantization quantization_bit bnb_4bit use_qlora qlora",
    "train.sharding": "fsdp deepspeed",
    "train.loss_kernel": "compile torch_compile",
    _TRACK: "logging_steps logging_dir log_every_n_steps report_to wandb_project",
    "name": "run_name",
    "= a run's folder is runs/NAME: set name": "output_dir save_path output_path",
    "= pass `--redo STAGE` on the command line to repeat a stage": "overwrite_output_dir",
    "= run the same command again: it continues from the newest checkpoint": "resume_from_checkpoint",
    "teacher.max_tokens evaluate.max_tokens on_policy.max_tokens": "max_new_tokens max_completion_tokens max_output_tokens",
    "evaluate.max_tokens teacher.max_tokens": "max_gen_toks",
    "teacher.samples on_policy.samples": "n num_samples num_return_sequences num_generations",
    "teacher.samples": "best_of",
    "= write evaluate.decodings: [vote-8] for eight samples per question": "repeats",
    "teacher.top_logprobs on_policy.top_logprobs": "top_logprobs logprobs num_logprobs",
    "= chains are sampled from the whole distribution; teacher.temperature is the only setting": "top_p top_k min_p",
    "= evaluate.decodings selects greedy or vote-8; teacher.temperature sets the teacher's sampling": "do_sample",
    "= there is no beam search; evaluate.decodings accepts greedy, vote-N and best-N": "num_beams",
    "student.model teacher.model": "model model_name model_path model_name_or_path pretrained pretrained_model_name_or_path",
    "student.model": "base_model student_model checkpoint_dir",
    "teacher.model": "teacher_model teacher_model_name_or_path",
    "student.tokenizer": "tokenizer_name tokenizer_path tokenizer_name_or_path",
    "student.chat": "template chat_template apply_chat_template",
    "student.system_prompt teacher.system_prompt teacher.server.system": "system_prompt system_message system",
    "student.chat_template_kwargs teacher.chat_template_kwargs": "template_args template_kwargs "
    "chat_template_args enable_thinking",
    _DATA: "dataset datasets dataset_name dataset_dir dataset_path data_path data_files train_file train_dataset "
    "train_data",
    "questions.out_of_distribution": "eval_dataset validation_file test_file tasks",
    "questions.validation": "val_size validation_split",
    "questions.test": "test_size",
    "questions.limit.train": "max_samples max_train_samples",
    "questions.limit.test": "max_eval_samples",
    "= write sets.NAME.fields: {question: COLUMN, answer: COLUMN}": "dataset_text_field columns column_mapping",
    "= list few-shot formats in evaluate.formats; train.demonstrations is the number of examples": "num_fewshot few_shot",
    "teacher.server.urls": "base_url api_base url urls endpoint",
    "teacher.server.key": "api_key openai_api_key token",
    "teacher.server.concurrency": "max_concurrency num_concurrent num_workers",
    "teacher.server.patience": "max_retries",
    "teacher.server.timeout": "request_timeout",
    "teacher.server.stop": "stop_sequences stop_words",
    "teacher.vllm.gpus evaluate.vllm.gpus": "tensor_parallel_size",
    "teacher.vllm.memory evaluate.vllm.memory": "gpu_memory_utilization",
    "teacher.vllm.length evaluate.vllm.length": "max_model_len",
    "teacher.vllm.eager evaluate.vllm.eager": "enforce_eager",
    "teacher.kind evaluate.engine": "backend",
    "teacher.kind": "provider",
    _LENGTH: "max_length max_seq_len max_seq_length cutoff_len block_size model_max_length",
    "= rows are never padded, so packing is always on; remove the key": "packing sample_packing",
    "student.dropout": "dropout_rate",
    "seed": "random_seed data_seed manual_seed",
    "= potstill uses a GPU if there is one; CUDA_VISIBLE_DEVICES selects it": "device device_map",
    "= potstill does not quantize models; remove the key": "load_in_4bit load_in_8bit quantization_bit",
    "= potstill has no such setting; remove the key": "label_smoothing_factor neftune_noise_alpha",
    "= a run trains unless teacher.kind is none; remove the key": "do_train",
    "train.divergence on_policy.divergence": "kl loss_type",
    "train.divergence_beta on_policy.divergence_beta": "beta alpha skew_alpha",
    "evaluate.cache": "cache_dir",
}
SYNONYMS: Final = {word: meaning for meaning, words in _SYNONYMS_BY_MEANING.items() for word in words.split()}

RENAMED_KEYS: Final = {  # old key -> new key
    "evaluate.mix": "evaluate.interpolate",
    "filter.cap": "filter.max_per_question",
    "filter.contamination": "filter.contamination_threshold",
    "filter.longest": "filter.max_chars",
    "filter.near": "filter.near_duplicate_threshold",
    "filter.shortest": "filter.min_chars",
    "on_policy.candidates": "on_policy.top_logprobs",
    "on_policy.groups": "on_policy.prompts_per_step",
    "on_policy.warm_up": "on_policy.warmup_steps",
    "repair": "on_policy",
    "report.read": "report.examples",
    "teacher.candidates": "teacher.top_logprobs",
    "teacher.server.per_request": "teacher.server.samples_per_request",
    "train.clip": "train.max_grad_norm",
    "train.factors": "train.lr_multipliers",
    "train.groups": "train.prompts_per_step",
    "train.hold": "train.stable_steps",
    "train.mass": "train.missing_probability",
    "train.peak": "train.peak_flops",
    "train.recompute": "train.gradient_checkpointing",
    "train.snapshot": "train.async_checkpoints",
    "train.stop_after": "train.early_stopping_patience",
    "train.warm_up": "train.warmup_steps",
    "transfer.drop_below": "transfer.min_probability",
    "transfer.least_coverage": "transfer.min_coverage",
    "transfer.least_mass": "transfer.min_transferred_probability",
    "transfer.marks": "transfer.calculator_marks",
}


def find_synonym(keys: tuple[str, ...]) -> str | None:
    """The meaning of an unknown key: a dotted key, or a sentence that begins with `=`. None if it is not a synonym."""
    meaning = SYNONYMS.get(keys[-1].lower().replace("-", "_"))
    if meaning is None or meaning.startswith("="):
        return meaning
    candidates = meaning.split()
    return next((key for key in candidates if key.split(".")[:-1] == list(keys[:-1])), candidates[0])
