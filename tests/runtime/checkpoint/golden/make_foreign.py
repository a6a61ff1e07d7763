"""Makes foreign.safetensors with the format's own package: a file that our reader did not write.

Needs torch and safetensors:  python make_foreign.py
"""
import pathlib

import torch
from safetensors.torch import save_file

tensors = {
    "model.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4).to(torch.bfloat16),
    "model.weight.momentum": torch.arange(-6, 6, dtype=torch.int8).reshape(3, 4),
    "scalar": torch.tensor(1.5, dtype=torch.float32),
    "empty": torch.zeros((0, 4), dtype=torch.float32),
    "n\u00e4me \"quoted\"": torch.tensor([7, 8], dtype=torch.int64),
}
path = pathlib.Path(__file__).with_name("foreign.safetensors")
save_file(tensors, str(path), metadata={"format": "pt", "note": "made by make_foreign.py"})
