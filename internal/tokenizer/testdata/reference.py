#!/usr/bin/env python3
"""The other half of the comparison with the tokenizers package: reads one JSON
object {"file", "texts", "ids"} and writes what the package makes of them."""
import json
import sys

import tokenizers

q = json.load(sys.stdin)
t = tokenizers.Tokenizer.from_file(q["file"])
t.no_truncation()
t.no_padding()
out = {
    "version": tokenizers.__version__,
    "plain": [t.encode(s, add_special_tokens=False).ids for s in q["texts"]],
    "template": [t.encode(s).ids for s in q["texts"][:200]],
    # where each piece of the split pattern ends, in characters
    "splits": [[end for _, (_, end) in t.pre_tokenizer.pre_tokenize_str(s)] for s in q["texts"][:3000]],
    "decoded": [t.decode(ids, skip_special_tokens=False) for ids in q["ids"]],
}
json.dump(out, sys.stdout)
