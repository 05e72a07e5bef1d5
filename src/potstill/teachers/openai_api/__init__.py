"""A teacher behind an OpenAI-compatible server: OpenAI, vLLM, SGLang, llama.cpp's server, llama-cpp-python, and others
that offer legacy completions or chat completions.

`teacher` has the class of the backend, and `settings` reads the recipe. `capabilities` probes a server. `request` builds
requests, `client` sends them, and `scheduler` keeps them in flight within `limits`. `response` decodes responses, and
`chain_reader` converts them to chains with `token_entries` and `chain_parts`. `batch_api` samples through batch files.
`stored_scores` scores existing texts, with a store, a budget (`budgeted_client`) and several servers (`replicas`), through
`score_requests`; `scoring` has the methods of servers.
"""
