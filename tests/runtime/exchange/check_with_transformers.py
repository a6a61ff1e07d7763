#!/usr/bin/env python3
"""Opens what `flashshard export` writes with other programs' own readers. Not part of the tests that run everywhere.

    python check_with_transformers.py CKPT [--flashshard build/flashshard]     # needs torch, transformers, gguf

CKPT is a checkpoint whose tokens are bytes, trained on sequences of at least 64. It is exported in bf16 and in fp32 and opened by
transformers. Both programs compute in fp32 (flashshard after importing the folder): the loss of a text's tokens and the text that
greedy decoding gives must agree. The GGUF file's tensors, read by the `gguf` package, are compared with the Hugging Face ones.
"""
import argparse
import json
import pathlib
import struct
import subprocess
import tempfile

import gguf
import numpy as np
import safetensors.torch
import torch
import transformers

TEXT = b"In the beginning God created the heaven and the earth. And the earth was"[:65]
GGUF_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down"}


def gguf_name(name):
    if name in GGUF_NAMES:
        return GGUF_NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    stem, suffix = rest.rsplit(".", 1)
    return f"blk.{layer}.{GGUF_NAMES[stem]}.{suffix}"


def permuted(weights, heads):
    """Rows of each head from halves to pairs, as llama.cpp's own converter has it."""
    return weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def values_of(tensor):
    data = np.array(tensor.data)
    if tensor.tensor_type == gguf.GGMLQuantizationType.BF16:
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return data


def check_gguf(path, folder, config):
    reader = gguf.GGUFReader(path)
    tensors = {t.name: t for t in reader.tensors}
    expected = safetensors.torch.load_file(folder / "model.safetensors")
    for name, weights in expected.items():
        weights = weights.float().numpy()
        if config.model_type == "llama" and ("q_proj" in name or "k_proj" in name):
            weights = permuted(weights, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        read = values_of(tensors.pop(gguf_name(name)))
        assert (read.reshape(weights.shape) == weights).all(), name
    assert set(tensors) <= {"rope_freqs.weight"}, tensors
    architecture = reader.get_field("general.architecture").contents()
    tokens = reader.get_field("tokenizer.ggml.tokens")
    print(f"  gguf {architecture}: {len(expected)} tensors equal, {len(tokens.contents()) if tokens else 0} tokens")


def by_transformers(folder, prompt, tokens):
    """The model, its mean loss over TEXT and the text that it goes on with."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    assert ids[0].tolist() == list(prompt.encode()), "the byte tokenizer"
    text = torch.tensor([list(TEXT)])
    with torch.no_grad():
        loss = model(text, labels=text).loss.item()
        out = model.generate(ids, max_new_tokens=tokens, do_sample=False)
    return model, loss, tokenizer.decode(out[0])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("--flashshard", default="build/flashshard")
    parser.add_argument("--prompt", default="and the ")
    parser.add_argument("--tokens", type=int, default=40)
    arguments = parser.parse_args()

    def flashshard(*words):
        return subprocess.run([arguments.flashshard, *map(str, words)], check=True, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL).stdout

    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        shard = scratch / "text.bin"  # llm.c's format
        shard.write_bytes(struct.pack("<256i", 20240520, 1, len(TEXT), *[0] * 253) + struct.pack(f"<{len(TEXT)}H", *TEXT))
        for dtype in ("bf16", "fp32"):
            folder = scratch / dtype
            flashshard("export", arguments.checkpoint, "--format", "hf", "--dtype", dtype, "--output", folder)
            model, their_loss, their_text = by_transformers(folder, arguments.prompt, arguments.tokens)
            imported = scratch / f"{dtype}-imported"
            flashshard("import", "--from-hf", folder, "--dtype", "fp32", "--output", imported)
            our_loss = json.loads(flashshard("eval", "--checkpoint", imported, "--data", shard, "--json"))["loss"]
            our_text = flashshard("generate", "--checkpoint", imported, "--prompt", arguments.prompt, "--tokens", arguments.tokens,
                                  "--temperature", 0)
            print(f"{dtype}: {type(model).__name__}, {model.num_parameters():,} parameters; loss {our_loss:.6f} here, "
                  f"{their_loss:.6f} in transformers; greedy text {their_text!r}")
            assert abs(our_loss - their_loss) < 1e-5 * their_loss, "the losses differ"
            assert our_text.rstrip("\n") == their_text.rstrip("\n"), our_text
            flashshard("export", arguments.checkpoint, "--format", "gguf", "--dtype", dtype, "--output", scratch / f"{dtype}-gguf")
            check_gguf(scratch / f"{dtype}-gguf" / "model.gguf", folder, model.config)


if __name__ == "__main__":
    main()
