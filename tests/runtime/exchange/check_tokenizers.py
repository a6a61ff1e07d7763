#!/usr/bin/env python3
"""Exported tokenizers, opened by transformers, give the ids that `flashshard prepare` gave. Not part of the tests that run everywhere.

    python check_tokenizers.py TEXT [--flashshard build/flashshard]     # needs transformers, tokenizers, sentencepiece

TEXT is a file of at least 100 KiB, of which the first 200 KiB are taken. For each of several tokenizers trained on it: prepared, a step
of training, an export, and the exported folder's AutoTokenizer over the same text.
"""
import argparse
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile

import sentencepiece
import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

ROOT = pathlib.Path(__file__).resolve().parents[3]
HEADER = 64  # of a token shard, docs/data.md
# What texts of one language lack: several scripts, combining characters, runs of white space and digits.
EXTRA = "\nThe na\u00efve caf\u00e9 \u65e5\u672c\u8a9e \U0001f600 e\u0301  two  spaces\n\n\ttab 1234567 don't, x=3; <0x41> <s> <unk>\n"
LLAMA3_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def sentencepiece_model(text, folder, model_type="bpe", **options):
    """With byte fallback, as Llama's."""
    (folder / "text").write_text(text)
    sentencepiece.SentencePieceTrainer.train(input=str(folder / "text"), model_prefix=str(folder / "tokenizer"), vocab_size=800,
                                             model_type=model_type, byte_fallback=True, minloglevel=2, **options)
    return f"sentencepiece:{folder / 'tokenizer.model'}"


def hugging_face(text, folder, tokenizer, trainer, settings):
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return f"hf:{folder}"


def byte_level(text, folder, split, end, template=None, normalizer=None):
    tokenizer = tokenizers.Tokenizer(models.BPE())
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(tokenizers.Regex(split), "isolated"),
                                                       pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    specials = [end] + ([template] if template else [])
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    name = hugging_face(text, folder, tokenizer, trainer, {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end})
    if template:  # written before every text, as Llama 3's
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{template} $A",
                                                                 special_tokens=[(template, tokenizer.token_to_id(template))])
        tokenizer.save(str(folder / "tokenizer.json"))
    return name


CASES = {
    "SentencePiece, text as it is": lambda text, folder: sentencepiece_model(
        text, folder, normalization_rule_name="identity", remove_extra_whitespaces=False),
    "SentencePiece, nmt_nfkc": lambda text, folder: sentencepiece_model(text, folder),
    "SentencePiece, no space before": lambda text, folder: sentencepiece_model(
        text, folder, normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False),
    "SentencePiece, unigram": lambda text, folder: sentencepiece_model(text, folder, model_type="unigram"),
    "tokenizer.json like Llama 3's": lambda text, folder: byte_level(text, folder, LLAMA3_SPLIT, "<|end_of_text|>", "<|begin_of_text|>"),
    "tokenizer.json like Qwen's": lambda text, folder: byte_level(
        text, folder, LLAMA3_SPLIT.replace("{1,3}", ""), "<|endoftext|>", normalizer=normalizers.NFC()),
    "bytes": lambda text, folder: "byte",
}


def ids_of_shard(folder):
    shard = (folder / "train-00000.tokens").read_bytes()
    width = 1 if json.loads((folder / "dataset.json").read_text()).get("token_bytes") == 1 else 2
    return list(struct.unpack(f"<{(len(shard) - HEADER) // width}{'BH'[width - 1]}", shard[HEADER:]))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("text", type=pathlib.Path)
    parser.add_argument("--flashshard", default=ROOT / "build/flashshard")
    arguments = parser.parse_args()
    text = arguments.text.read_text()[:200 << 10] + EXTRA
    # The tokenizers' process must find the package that this interpreter has.
    environment = {**os.environ, "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"}
    failed = 0
    for name, make in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            (folder / "input.txt").write_text(text)

            def flashshard(*words):
                subprocess.run([arguments.flashshard, *map(str, words)], check=True, stdout=subprocess.DEVNULL, env=environment)

            (folder / "made").mkdir()
            flashshard("prepare", "--input", folder / "input.txt", "--output", folder / "data", "--validation-fraction", 0, "--tokenizer",
                       make(text, folder / "made"))
            flashshard("train", "--config", ROOT / "launch/configs/tiny.textproto", "--set", f"run.dir={folder / 'run'}", "--set",
                       f"data.path={folder / 'data'}", "--set", "train.steps=1", "--set", "train.validate_every=0", "--set", "schedule.warmup_steps=0", "--set",
                       "model.vocab_size=1024")
            flashshard("export", folder / "run", "--format", "hf", "--output", folder / "out")
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "out")
            theirs = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
            ours = ids_of_shard(folder / "data")
            ends = json.loads((folder / "out/config.json").read_text())["eos_token_id"]
            assert ours.pop() == ends, "the document does not end"
            same = theirs == ours
            back = tokenizer.decode(theirs) == text
            failed += not same
            first = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
            print(f"{name}: {type(tokenizer).__name__}, {len(ours)} ids here, {len(theirs)} there, "
                  f"{'equal' if same else f'different from {first} on: {ours[first - 3:first + 5]} {theirs[first - 3:first + 5]}'}"
                  f"{', decoded to the text' if back else ''}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
