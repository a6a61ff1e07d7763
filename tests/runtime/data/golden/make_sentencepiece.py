#!/usr/bin/env python3
"""Makes tokenizer.model, a small SentencePiece model with byte fallback, and sentencepiece.json, ids from its own command line.

Needs the programs of the package `sentencepiece` (Debian). Run in this folder; the text is made here, so the model depends
on the trainer's version alone.
"""
import json
import random
import subprocess

words = "in the beginning God created heaven and earth light darkness waters firmament day night he said let there be".split()
source = random.Random(7)
with open("text.tmp", "w") as file:
    for _ in range(2000):
        file.write(" ".join(source.choices(words, k=8)) + ".\n")
subprocess.run(["spm_train", "--input=text.tmp", "--model_prefix=tokenizer", "--vocab_size=340", "--model_type=bpe",
                "--normalization_rule_name=identity", "--byte_fallback=true", "--minloglevel=2"], check=True)
subprocess.run(["rm", "text.tmp", "tokenizer.vocab"], check=True)

texts = ["God said let there be light.", "  two  spaces", "naïve 日本 \U0001f600", "the", "a\tb"]
cases = []
for text in texts:
    ids = subprocess.run(["spm_encode", "--model=tokenizer.model", "--output_format=id"], input=text + "\n", text=True,
                         stdout=subprocess.PIPE, check=True).stdout
    cases.append({"text": text, "ids": [int(word) for word in ids.split()]})
json.dump(cases, open("sentencepiece.json", "w"), indent=1)
