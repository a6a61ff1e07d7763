#!/usr/bin/env python3
"""A checkpoint's size beside PyTorch's: the same Llama after one step, saved by `flashshard train` (plain and under zstd) and by
torch.save as fp32 weights with AdamW's state.

    launch/quickstart.sh                                     # builds and prepares data/kjv
    benchmarks/peers/checkpoint_size.py                      # 2, 26 and 113 million parameters
    benchmarks/peers/checkpoint_size.py --python PYTHON      # an interpreter that has torch

Writes benchmarks/results/checkpoint_size.md. Sizes are those of all files of a checkpoint.
"""
import argparse
import json
import pathlib
import subprocess
import tempfile

import compare

MODELS = {**{name: {key: shape[key] for key in ("hidden", "layers", "heads", "kv-heads", "feed-forward")}
             for name, shape in compare.MODELS.items()},
          "113m": {"hidden": 768, "layers": 16, "heads": 12, "kv-heads": 12, "feed-forward": 2048}}
SEQUENCE = 32
RANKS = 2


def save_by_pytorch(shape, path):
    """Runs in the peers' interpreter: one step of AdamW, then torch.save."""
    import torch

    import pytorch_llama

    torch.manual_seed(1)
    options = {key.replace("-", "_"): value for key, value in shape.items()}
    model = pytorch_llama.Llama(argparse.Namespace(vocabulary=256, sequence_length=SEQUENCE, **options))
    optimizer = torch.optim.AdamW(model.parameters())
    tokens = torch.randint(256, (1, SEQUENCE + 1))
    model(tokens[:, :-1], tokens[:, 1:]).backward()
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    print(sum(p.numel() for p in model.parameters()))


def pytorch(arguments, shape, folder):
    path = folder / "checkpoint.pt"
    command = [compare.peers_python(arguments), __file__, "--save-by-pytorch", json.dumps(shape), path]
    parameters = int(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return parameters, path.stat().st_size


def bytes_of(folder):
    return sum(file.stat().st_size for file in folder.iterdir())


def flashshard(arguments, shape, folder):
    settings = {"run.dir": folder / "run", "model.preset": "quickstart", "data.path": arguments.data, "train.steps": 1,
                "train.sequence_length": SEQUENCE, "train.micro_batch": 1, "train.global_batch": RANKS, "train.validate_every": 0,
                "schedule.warmup_steps": 0, "model.hidden_size": shape["hidden"], "model.layers": shape["layers"],
                "model.heads": shape["heads"], "model.kv_heads": shape["kv-heads"],
                "model.head_dim": shape["hidden"] // shape["heads"], "model.feed_forward_size": shape["feed-forward"]}
    command = ["mpirun", "-n", str(RANKS), arguments.flashshard, "train", "--config", compare.ROOT / "launch/configs/quickstart.textproto"]
    for path, value in settings.items():
        command += ["--set", f"{path}={value}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    subprocess.run([arguments.flashshard, "reshard", folder / "run", "--ranks", str(RANKS), "--zstd-level", "1", "--output",
                    folder / "zstd"], check=True, stdout=subprocess.DEVNULL)
    inspection = json.loads(subprocess.run([arguments.flashshard, "inspect", folder / "run", "--json"], check=True,
                                           stdout=subprocess.PIPE).stdout)
    files = bytes_of(folder / "run/checkpoints/step-00000001")
    assert files == inspection["file_bytes"], "inspect counts other bytes than the folder has"
    return {"parameters": inspection["parameters"], "tensors": inspection["tensor_bytes"], "files": files,
            "zstd": bytes_of(folder / "zstd/step-00000001")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flashshard", type=pathlib.Path, default=compare.ROOT / "build/flashshard")
    parser.add_argument("--data", type=pathlib.Path, default=compare.ROOT / "data/kjv")
    parser.add_argument("--python", help="an interpreter that has torch")
    parser.add_argument("--folder", help="for the files while it runs; the system's folder for temporary files")
    parser.add_argument("--save-by-pytorch", nargs=2, metavar=("SHAPE", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.save_by_pytorch:
        save_by_pytorch(json.loads(arguments.save_by_pytorch[0]), arguments.save_by_pytorch[1])
        return

    rows = []
    for name, shape in MODELS.items():
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            folder = pathlib.Path(folder)
            ours = flashshard(arguments, shape, folder)
            parameters, theirs = pytorch(arguments, shape, folder)
        assert parameters == ours["parameters"], f"{name}: {parameters} parameters there, {ours['parameters']} here"
        rows.append(f"| {parameters:,} | {ours['tensors'] / parameters:.4f} | {ours['files'] / ours['tensors'] - 1:.3%} | "
                    f"{ours['files']:,} | {theirs:,} | {theirs / ours['files']:.3f} | {ours['zstd']:,} | {theirs / ours['zstd']:.3f} |")
        print(rows[-1], flush=True)
    text = f"""# Size of a checkpoint, beside PyTorch

One step of the same Llama from random weights; {RANKS} ranks here. PyTorch: `torch.save` of fp32 weights and AdamW's state
(12 bytes a parameter). Overhead: headers of the shard files and both manifests, beside the tensors' bytes. Vectors (norms) keep
fp32 state, which is what stands above 5.125 bytes a parameter. Made by `benchmarks/peers/checkpoint_size.py`.

| parameters | bytes a parameter | overhead | all files | torch.save | times smaller | under zstd, level 1 | times smaller |
| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
""" + "\n".join(rows) + "\n"
    (compare.ROOT / "benchmarks/results/checkpoint_size.md").write_text(text)


if __name__ == "__main__":
    main()
