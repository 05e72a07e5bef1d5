"""A folder of a small Llama as one GGUF file for llama.cpp, run by an interpreter that has `gguf` and `safetensors`.

    ENV/bin/python tests/support/write_gguf.py FOLDER FILE.gguf [TOKEN]

TOKEN is the id of one that llama.cpp puts before every prompt.
For models with a byte-level BPE tokenizer whose digits are single (llama.cpp calls that splitting
"starcoder"), in fp32.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query's or key's matrix in the order of llama.cpp, which rotates neighbours where transformers rotates
    the two halves of a head."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def write(folder: Path, file: Path, first: int | None = None) -> None:
    import gguf  # inside: the tests' own interpreter, which looks for examples in every file, has none
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    heads, wide = config["num_attention_heads"], config["hidden_size"]
    out = gguf.GGUFWriter(file, "llama")
    out.add_name("tiny")
    out.add_file_type(gguf.LlamaFileType.ALL_F32)
    out.add_vocab_size(config["vocab_size"])
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(wide)
    out.add_block_count(config["num_hidden_layers"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(heads)
    out.add_head_count_kv(config["num_key_value_heads"])
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_rope_dimension_count(wide // heads)
    out.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
    spare = [f"<|spare {position}|>" for position in range(len(pieces), config["vocab_size"])]
    special = {config["pad_token_id"], config["eos_token_id"]}
    kinds = [
        gguf.TokenType.CONTROL if position in special else gguf.TokenType.NORMAL for position in range(len(pieces))
    ]
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("starcoder")
    out.add_token_list([*pieces, *spare])
    out.add_token_types([*kinds, *[gguf.TokenType.UNUSED] * len(spare)])
    out.add_token_merges([" ".join(pair) for pair in model["merges"]])
    out.add_eos_token_id(config["eos_token_id"])
    out.add_pad_token_id(config["pad_token_id"])
    out.add_add_bos_token(first is not None)
    if first is not None:
        out.add_bos_token_id(first)
    for name, weight in load_file(folder / "model.safetensors").items():
        own, kind = name.rsplit(".", 1)
        layer = own.split(".")[2] if own.startswith("model.layers.") else None
        own = NAMES[own.split(".", 3)[3] if layer is not None else own]
        if own in ("attn_q", "attn_k"):
            weight = interleaved(weight, heads)
        out.add_tensor(f"{own}.{kind}" if layer is None else f"blk.{layer}.{own}.{kind}", weight.astype(np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
