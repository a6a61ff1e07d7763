#!/usr/bin/env python3
"""Writes rules_fp32.bin: five steps of torch.optim's Adam and SGD in fp32, for the conformance test of the fp32 rules.

Little-endian float32, N = 97 elements each: initial weights; the gradients of the 5 steps; then for each of 5 steps the
weights, momentum and variance after it of Adam; then for each step the weights and momentum of SGD with momentum 0.9, of SGD
with Nesterov's momentum 0.9 and of SGD without momentum (its momentum is written as 0).
Run with PyTorch (written with 2.x): python3 make_rules_golden.py
"""

import pathlib

import torch

N, STEPS = 97, 5

torch.manual_seed(20240608)
weights = torch.randn(N) * torch.exp2(torch.randint(-8, 4, (N,)).float())
gradients = [torch.randn(N) * torch.exp2(torch.randint(-20, 6, (N,)).float()) for _ in range(STEPS)]
record = [weights] + gradients
SGD = {"lr": 3e-3, "weight_decay": 0.1, "foreach": False}
RULES = [
    lambda p: torch.optim.Adam([p], lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, foreach=False),
    lambda p: torch.optim.SGD([p], momentum=0.9, **SGD),
    lambda p: torch.optim.SGD([p], momentum=0.9, nesterov=True, **SGD),
    lambda p: torch.optim.SGD([p], **SGD),
]
for make in RULES:
    parameter = torch.nn.Parameter(weights.clone())
    optimizer = make(parameter)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        state = optimizer.state[parameter]
        record.append(parameter.detach().clone())
        if "exp_avg" in state:
            record += [state["exp_avg"].clone(), state["exp_avg_sq"].clone()]
        else:
            momentum = state.get("momentum_buffer")
            record.append(torch.zeros(N) if momentum is None else momentum.clone())
path = pathlib.Path(__file__).with_name("rules_fp32.bin")
path.write_bytes(torch.cat(record).numpy().astype("<f4").tobytes())
print(path, path.stat().st_size, "bytes")
