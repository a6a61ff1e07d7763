"""Makes llama3/ and qwen2/: model folders as transformers' save_pretrained writes them, in bf16.

    python make_models.py            # needs torch and transformers; writes beside itself

They are the models of tests/runtime/model/golden/make_llama.py, whose logits stand in that folder.
"""
import pathlib
import sys

import torch
import transformers

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "model" / "golden"))
import make_llama  # noqa: E402


def main():
    for name in ("llama3", "qwen2"):
        model = make_llama.build(make_llama.CASES[name], torch.bfloat16)
        model.save_pretrained(HERE / name)
        print(name, sum(p.numel() for p in model.parameters()), "parameters, transformers", transformers.__version__)


if __name__ == "__main__":
    main()
