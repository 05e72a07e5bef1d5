"""Vocabularies: what the tokens of a tokenizer mean (`pieces`) and text to tokens with byte spans (`encoder`).

>>> Vocabulary((b"a", b" b"), {}, eos=None, pad=None, unk=None, dummy=True, digest="").split([1, 0, 1])
[b'b', b'a', b' b']
"""

from potstill.vocabulary.encoder import Encoding, Fast, encodable, fast, plain
from potstill.vocabulary.pieces import Vocabulary, chosen, digest, from_json
from potstill.vocabulary.short import encoder

__all__ = ["Encoding", "Fast", "Vocabulary", "chosen", "digest", "encodable", "encoder", "fast", "from_json", "plain"]
