#!/usr/bin/env python3
"""Runs what `flashshard export --format gguf` writes in llama.cpp. Not part of the tests that run everywhere.

    python check_with_llama_cpp.py CKPT [--flashshard build/flashshard]     # needs numpy, torch, transformers, llama-cpp-python

CKPT is a checkpoint whose tokens are bytes. Its fp32 GGUF export is opened by llama.cpp, its fp32 Hugging Face export by transformers,
whose logits check_with_transformers.py holds to ours: all logits of a text must agree within 1e-4 of the largest. The bf16 GGUF export
must agree within bf16 rounding (1 %), and llama.cpp's tokens of the text must be its bytes.
"""
import argparse
import pathlib
import subprocess
import tempfile

import llama_cpp
import numpy as np
import torch
import transformers

TEXT = b"In the beginning God created the heaven and the earth. And the earth was"[:64]


def by_llama_cpp(folder):
    model = llama_cpp.Llama(str(folder / "model.gguf"), n_ctx=len(TEXT), n_batch=len(TEXT), logits_all=True, verbose=False,
                            type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32)
    tokens = model.tokenize(TEXT, add_bos=False)
    assert tokens == list(TEXT), tokens
    model.eval(tokens)
    return np.array(model.scores[:len(TEXT)])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("--flashshard", default="build/flashshard")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)

        def export(name, *options):
            subprocess.run([arguments.flashshard, "export", arguments.checkpoint, "--output", scratch / name, *options], check=True,
                           stdout=subprocess.DEVNULL)
            return scratch / name

        model = transformers.AutoModelForCausalLM.from_pretrained(export("hf", "--format", "hf", "--dtype", "fp32"), dtype=torch.float32)
        with torch.no_grad():
            expected = model(torch.tensor([list(TEXT)])).logits[0].numpy()
        largest = np.abs(expected).max()
        for dtype, tolerance in (("fp32", 1e-4), ("bf16", 1e-2)):
            logits = by_llama_cpp(export(f"gguf-{dtype}", "--format", "gguf", "--dtype", dtype))
            difference = np.abs(logits - expected).max()
            print(f"{type(model).__name__}, {dtype}: {logits.shape[0]} x {logits.shape[1]} logits up to {largest:.2f}, "
                  f"largest difference {difference:.2g}")
            assert difference <= tolerance * largest


if __name__ == "__main__":
    main()
