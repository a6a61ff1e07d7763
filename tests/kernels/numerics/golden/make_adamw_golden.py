#!/usr/bin/env python3
"""Writes adamw_fp32.bin: ten steps of torch.optim.AdamW in fp32, for the conformance test of the fp32 AdamW rule.

Little-endian float32, in this order, N = 333 elements each:
  initial weights; then for each of 10 steps: gradient, weights after it, exp_avg, exp_avg_sq.
Run with PyTorch (written with 2.x): python3 make_adamw_golden.py
"""

import pathlib

import torch

N, STEPS = 333, 10

torch.manual_seed(20240607)
weights = torch.randn(N) * torch.exp2(torch.randint(-8, 4, (N,)).float())
parameter = torch.nn.Parameter(weights.clone())
optimizer = torch.optim.AdamW(
    [parameter], lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, foreach=False
)
record = [weights]
for step in range(STEPS):
    # Magnitudes over many binades, some exact zeros.
    gradient = torch.randn(N) * torch.exp2(torch.randint(-20, 6, (N,)).float())
    gradient[torch.rand(N) < 0.1] = 0.0
    parameter.grad = gradient.clone()
    optimizer.step()
    state = optimizer.state[parameter]
    record += [gradient, parameter.detach().clone(), state["exp_avg"].clone(), state["exp_avg_sq"].clone()]
path = pathlib.Path(__file__).with_name("adamw_fp32.bin")
path.write_bytes(torch.cat(record).numpy().astype("<f4").tobytes())
print(path, path.stat().st_size, "bytes")
