#!/usr/bin/env python3
"""Golden file of the model operations: what PyTorch (fp32, CPU) computes forward and backward.

Writes ops.safetensors beside this script: inputs, outputs and gradients of attention, RMSNorm, rotary embedding, SwiGLU and
cross-entropy, named <operation>.<tensor>. Needs torch and transformers (for Llama's own rotary function).
Usage: python3 make_ops.py
"""
import json
import pathlib
import struct

import torch
import torch.nn.functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

torch.manual_seed(20240607)
tensors = {}


def keep(operation, **named):
    for name, tensor in named.items():
        tensors[f"{operation}.{name}"] = tensor.detach().contiguous()


def leaf(*shape, scale=1.0):
    return (torch.randn(*shape) * scale).requires_grad_()


def attention(sequences=2, length=19, heads=4, kv_heads=2, dim=8):
    qkv = leaf(sequences * length, (heads + 2 * kv_heads) * dim)
    q, k, v = qkv.view(sequences, length, -1, dim).transpose(1, 2).split([heads, kv_heads, kv_heads], dim=1)
    group = heads // kv_heads
    out = F.scaled_dot_product_attention(
        q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), is_causal=True)
    out = out.transpose(1, 2).reshape(sequences * length, heads * dim)
    grad_out = torch.randn_like(out)
    out.backward(grad_out)
    keep("attention", qkv=qkv, out=out, grad_out=grad_out, grad_qkv=qkv.grad)


def rmsnorm(tokens=7, width=33):
    x, weight = leaf(tokens, width), leaf(width)
    out = F.rms_norm(x, (width,), weight, eps=1e-5)
    grad_out = torch.randn_like(out)
    out.backward(grad_out)
    keep("rmsnorm", x=x, weight=weight, out=out, grad_out=grad_out, grad_x=x.grad, grad_weight=weight.grad)


def rope(length=11, heads=2, kv_heads=1, dim=8):
    qkv = leaf(length, (heads + 2 * kv_heads) * dim)
    q, k, v = qkv.view(1, length, -1, dim).transpose(1, 2).split([heads, kv_heads, kv_heads], dim=1)
    frequency = 1.0 / 10000.0 ** (torch.arange(0, dim, 2).float() / dim)
    angle = torch.outer(torch.arange(length).float(), frequency)
    both = torch.cat([angle, angle], dim=-1)[None]
    q, k = apply_rotary_pos_emb(q, k, both.cos(), both.sin())
    out = torch.cat([q, k, v], dim=1).transpose(1, 2).reshape(length, -1)
    grad_out = torch.randn_like(out)
    out.backward(grad_out)
    keep("rope", qkv=qkv, cosine_sine=torch.cat([angle.cos(), angle.sin()], dim=-1), out=out,
         grad_out=grad_out, grad_qkv=qkv.grad)


def swiglu(tokens=5, width=21):
    gate_up = leaf(tokens, 2 * width, scale=2.0)
    gate, up = gate_up.chunk(2, dim=-1)
    out = F.silu(gate) * up
    grad_out = torch.randn_like(out)
    out.backward(grad_out)
    keep("swiglu", gate_up=gate_up, out=out, grad_out=grad_out, grad_gate_up=gate_up.grad)


def cross_entropy(tokens=12, width=10, vocabulary=37):
    hidden, weight = leaf(tokens, width), leaf(vocabulary, width)
    targets = torch.randint(0, vocabulary, (tokens,))
    targets[3] = targets[8] = -1
    loss = F.cross_entropy(hidden @ weight.T, targets, ignore_index=-1, reduction="sum")
    loss.backward()
    keep("cross_entropy", hidden=hidden, weight=weight, targets=targets.to(torch.int32), loss=loss.view(1),
         grad_hidden=hidden.grad, grad_weight=weight.grad)


def write(path):
    names = {torch.float32: "F32", torch.int32: "I32"}
    header = {"__metadata__": {"made_by": "tests/kernels/golden/make_ops.py", "torch": torch.__version__}}
    data = b""
    for name, tensor in tensors.items():
        raw = tensor.numpy().tobytes()
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


attention()
rmsnorm()
rope()
swiglu()
cross_entropy()
write(pathlib.Path(__file__).with_name("ops.safetensors"))
