"""Tokenizers of students and local teachers, loaded from folders. Only this package uses their libraries.

    >>> from potstill import demo
    >>> tokenizer = load_tokenizer(demo.DATA / "models" / "student")
    >>> encoding = tokenizer.encode("2 + 2")
    >>> [tokenizer.token_bytes(token) for token in encoding.ids], encoding.spans
    ([b' 2', b' +', b' 2'], [(0, 1), (1, 3), (3, 5)])
    >>> tokenizer.decode([*encoding.ids, tokenizer.eos]), sorted(tokenizer.files)
    ('2 + 2', ['special_tokens_map.json', 'tokenizer.json', 'tokenizer_config.json'])

(`import tokenizers` in these modules imports the Hugging Face library.)
"""

from typing import Final

from potstill.tokenization.load import Tokenizer, load_tokenizer, replace_end_token, thought_tags_identity

VERSION: Final = 1  # of the tokens of a text and their bytes; stored by every stage in which a model reads or writes

__all__ = ["VERSION", "Tokenizer", "load_tokenizer", "replace_end_token", "thought_tags_identity"]
