"""A teacher behind an OpenAI-compatible server: OpenAI, vLLM, SGLang, llama.cpp's server, llama-cpp-python, and others
that offer legacy completions or chat completions.

`teacher` has the class of the backend. `capabilities` probes a server; `request` builds requests, `client` sends them,
`scheduler` keeps them in flight within `limits`; `response` decodes what comes back, and `chain_reader` makes chains of it,
with `token_entries` and `chain_parts`. `batch_api` does the same through files, and `scoring` scores existing texts.
"""
