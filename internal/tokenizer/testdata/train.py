#!/usr/bin/env python3
"""Trains the small tokenizers of this folder with the tokenizers package
(0.23.3): the Llama-3, Qwen2 and GPT-2 shapes, on the text below and the source
of Python's standard library. Nothing of any published tokenizer is in them but
the split patterns.

usage: train.py FOLDER
"""
import glob
import json
import os
import sys
import sysconfig

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

PROSE = """
We don't know what they'll say; I'm sure it's fine, you've seen they're here and he'd go.
Wir können die Größe der Straße nicht ändern. L'été dernier, où étiez-vous ? ¿Dónde está el niño?
Съешь же ещё этих мягких французских булок, да выпей чаю. Это не первое слово в этом тексте.
我们需要记录生产环境中的请求。今天的天气很好，我们去公园吧。這是繁體中文的句子。
これは日本語の文章です。カタカナとひらがなと漢字が混ざっています。 이것은 한국어 문장입니다. 서버에 요청을 보냅니다.
هذه جملة باللغة العربية. النص من اليمين إلى اليسار. זה משפט בעברית. यह हिन्दी का एक वाक्य है। ภาษาไทยไม่มีช่องว่าง
\U0001f600 \U0001f680\U0001f680 \U0001f469\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f \u2014 \u201cquoted\u201d \u2026 \u00a0\u3000 1234567890 3.14159
"""


def corpus():
    yield from [PROSE] * 300
    for name in sorted(glob.glob(os.path.join(sysconfig.get_paths()["stdlib"], "*.py")))[:120]:
        with open(name, encoding="utf-8") as f:
            yield f.read()


def split(regex):
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), "isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def train(pre, size, **model):
    t = Tokenizer(models.BPE(**model))
    t.pre_tokenizer = pre
    t.decoder = decoders.ByteLevel()
    return t, trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )


def special(*names):
    return [AddedToken(n, special=True, normalized=False) for n in names]


def llama3():
    t, trainer = train(split(LLAMA3), 3000, ignore_merges=True)
    t.train_from_iterator(corpus(), trainer)
    t.add_special_tokens(
        special("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    )
    t.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(
                single="<|begin_of_text|> $A",
                pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
                special_tokens=[("<|begin_of_text|>", t.token_to_id("<|begin_of_text|>"))],
            ),
        ]
    )
    d = json.loads(t.to_str())
    # The published file spells merges as strings, and has words in its
    # vocabulary that no merges reach: both are what ignore_merges is about.
    d["model"]["merges"] = [" ".join(m) for m in d["model"]["merges"]]
    lost = {"\u0120configure", "\u0120return", "\u0120self", "\u0120None", "print"}
    d["model"]["merges"] = [m for m in d["model"]["merges"] if m.replace(" ", "") not in lost]
    return d


def qwen2():
    t, trainer = train(split(QWEN2), 3000)
    t.normalizer = normalizers.NFC()
    t.train_from_iterator(corpus(), trainer)
    t.add_special_tokens(special("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    t.add_tokens([AddedToken(n, special=False, normalized=False) for n in ("<think>", "</think>", "<tool_call>")])
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    return json.loads(t.to_str())


def gpt2():
    """GPT-2's pattern, with every odd kind of added token."""
    t, trainer = train(pre_tokenizers.ByteLevel(add_prefix_space=False), 2000)
    t.normalizer = normalizers.Sequence([normalizers.NFC()])
    trainer.special_tokens = special("<|endoftext|>")
    t.train_from_iterator(corpus(), trainer)
    t.add_tokens(
        [
            AddedToken("<mask>", special=True, lstrip=True, normalized=False),
            AddedToken("<pad>", special=True, rstrip=True, normalized=False),
            AddedToken("<pad><pad>", special=True, lstrip=True, rstrip=True, normalized=False),
            AddedToken("e\u0301t\u00e9", normalized=True),
            AddedToken("\u00e9te\u0301\u0301", normalized=False),
            AddedToken("hello", normalized=True),
            AddedToken(" wor", normalized=True),
            AddedToken("\n\n\n\n", normalized=False),
            AddedToken("<a b>", normalized=False),
            AddedToken("\u65e5\u672c", normalized=True, rstrip=True),
        ]
    )
    t.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A <pad>",
        special_tokens=[("<|endoftext|>", 0), ("<pad>", t.token_to_id("<pad>"))],
    )
    return json.loads(t.to_str())


for make in (llama3, qwen2, gpt2):
    d = make()
    path = os.path.join(sys.argv[1], make.__name__ + ".json")
    with open(path, "w", encoding="utf-8") as f:
        json.dump(d, f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")
    Tokenizer.from_file(path)
