"""The peer: a Llama decoder in plain PyTorch (fp32, eager, scaled_dot_product_attention, AdamW), trained as `flashshard train` trains
its own. compare.py runs it; it prints one JSON object.

Bytes by class are counted from the tensors: parameters, their gradients, AdamW's state, and what autograd holds between forward and
backward (saved_tensors_hooks, each storage once, parameters left out).
"""
import argparse
import json
import math
import pathlib
import resource
import time

import torch
import torch.nn.functional as F
from torch import nn

SHARD_HEADER_BYTES = 64  # docs/data.md


class RmsNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight, 1e-5)


class Block(nn.Module):
    def __init__(self, o):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = o.heads, o.kv_heads, o.hidden // o.heads
        self.input_norm, self.post_norm = RmsNorm(o.hidden), RmsNorm(o.hidden)
        self.qkv = nn.Linear(o.hidden, (o.heads + 2 * o.kv_heads) * self.head_dim, bias=False)
        self.out = nn.Linear(o.heads * self.head_dim, o.hidden, bias=False)
        self.gate_up = nn.Linear(o.hidden, 2 * o.feed_forward, bias=False)
        self.down = nn.Linear(o.feed_forward, o.hidden, bias=False)

    def rotate(self, x, cosine, sine):
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cosine - b * sine, b * cosine + a * sine), dim=-1)

    def forward(self, x, cosine, sine):
        batch, length, _ = x.shape
        qkv = self.qkv(self.input_norm(x)).view(batch, length, -1, self.head_dim).transpose(1, 2)
        q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        y = F.scaled_dot_product_attention(self.rotate(q, cosine, sine), self.rotate(k, cosine, sine), v, is_causal=True,
                                           enable_gqa=self.heads != self.kv_heads)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, -1))
        gate, up = self.gate_up(self.post_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Llama(nn.Module):
    def __init__(self, o):
        super().__init__()
        self.embedding = nn.Embedding(o.vocabulary, o.hidden)
        self.blocks = nn.ModuleList(Block(o) for _ in range(o.layers))
        self.norm = RmsNorm(o.hidden)
        head_dim = o.hidden // o.heads
        frequency = 10000.0 ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        angle = torch.arange(o.sequence_length, dtype=torch.float64)[:, None] * frequency
        self.register_buffer("cosine", angle.cos().float(), persistent=False)
        self.register_buffer("sine", angle.sin().float(), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                writes_residual = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * o.layers) if writes_residual else 0.02)

    def forward(self, tokens, targets):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cosine, self.sine)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


class SavedBytes:
    """Bytes that autograd keeps for the backward, each storage once."""

    def __init__(self, model):
        self.known = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.storages = {}

    def pack(self, tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.known:
            self.storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    def total(self):
        return sum(self.storages.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("hidden", "layers", "heads", "kv-heads", "feed-forward", "vocabulary", "sequence-length", "micro-batch",
                 "global-batch", "steps", "threads", "seed"):
        parser.add_argument("--" + name, type=int, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--warmup", type=int, required=True)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="a folder made by `flashshard prepare`")
    o = parser.parse_args()

    torch.set_num_threads(o.threads)
    torch.manual_seed(o.seed)
    raw = (o.data / "train-00000.tokens").read_bytes()[SHARD_HEADER_BYTES:]
    tokens = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    model = Llama(o)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
                                  lr=o.learning_rate, betas=(0.9, 0.95), eps=1e-8, fused=True)

    def rate(step):  # cosine to a tenth, as the quick start's schedule
        if step <= o.warmup:
            return o.learning_rate * step / o.warmup
        progress = (step - o.warmup) / (o.steps - o.warmup)
        return o.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))

    losses, seconds, saved = [], [], SavedBytes(model)
    for step in range(1, o.steps + 1):
        begin = time.perf_counter()
        loss_sum = 0.0
        for _ in range(o.global_batch // o.micro_batch):
            starts = torch.randint(len(tokens) - o.sequence_length - 1, (o.micro_batch,))
            window = torch.stack([tokens[s:s + o.sequence_length + 1] for s in starts]).long()
            scale = o.micro_batch / o.global_batch
            if step == 1:
                with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda t: t):
                    loss = model(window[:, :-1], window[:, 1:])
            else:
                loss = model(window[:, :-1], window[:, 1:])
            (loss * scale).backward()
            loss_sum += loss.item() * scale
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.step()
        gradients = sum(p.grad.nbytes for p in model.parameters())
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - begin)
        losses.append(loss_sum)
        if step == 1:
            activations, saved.storages = saved.total() // (o.global_batch // o.micro_batch), {}
    weights = sum(p.nbytes for p in model.parameters())
    state = sum(v.nbytes for s in optimizer.state.values() for v in s.values())
    print(json.dumps({
        "torch": torch.__version__, "parameters": sum(p.numel() for p in model.parameters()), "losses": losses, "seconds": seconds,
        "bytes": {"weights": weights, "gradients": gradients, "optimizer": state, "activations": activations},
        "rss_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


if __name__ == "__main__":
    main()
