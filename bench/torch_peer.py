"""The training steps of bench/cases.json in PyTorch: python bench/torch_peer.py CASE f32|bf16 THREADS [--compile] [--steps N]

Prints one JSON line. Fused AdamW, fused attention, gradients set to None, bf16 through autocast with f32 weights.
"""

import argparse
import json
import math
import pathlib
import statistics
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

CASES = json.loads((pathlib.Path(__file__).parent / "cases.json").read_text())
SAMPLES = 512


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.c_fc, self.mlp_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        b, t, c = x.shape
        heads = (b, t, self.heads, c // self.heads)
        q, k, v = (part.view(heads).transpose(1, 2) for part in self.c_attn(self.ln_1(x)).split(c, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(y.transpose(1, 2).reshape(b, t, c))
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class Gpt2(nn.Module):
    def __init__(self, vocab, context, layers, width, heads, rate):
        super().__init__()
        assert rate == 0.0
        self.wte, self.wpe = nn.Embedding(vocab, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        for name, p in self.named_parameters():
            if p.ndim > 1:
                nn.init.normal_(p, 0.0, 0.02 / math.sqrt(2 * layers) if "proj" in name else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, ids):
        x = self.wte(ids) + self.wpe.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte.weight)


def mlp(channels, height, width, hidden, classes):
    sizes = [channels * height * width, *hidden]
    layers = [nn.Flatten()]
    for a, b in zip(sizes, sizes[1:]):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], classes))


def samples(case):
    """Random inputs and labels, made before anything is timed."""
    model = case["model"]
    if case["architecture"] == "mlp":
        shape = (SAMPLES, model["channels"], model["height"], model["width"])
        return torch.rand(shape), torch.randint(0, model["classes"], (SAMPLES,))
    tokens = torch.randint(0, model["vocab"], (SAMPLES, case["length"] + 1))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def since_process_start():
    """Seconds, of which Linux counts hundredths."""
    started = int(pathlib.Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19]) / 100
    return float(pathlib.Path("/proc/uptime").read_text().split()[0]) - started


def peak_bytes():
    status = pathlib.Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("case", choices=CASES)
    parser.add_argument("precision", choices=["f32", "bf16"])
    parser.add_argument("threads", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    case = CASES[args.case]
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = {"gpt2": Gpt2, "mlp": mlp}[case["architecture"]](**case["model"]).train()
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=1e-4,
        betas=(0.9, 0.95),
        fused=True,
    )
    parameters = sum(p.numel() for p in model.parameters())
    bf16 = args.precision == "bf16"

    def loss_of(x, y):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            return F.cross_entropy(model(x).flatten(0, -2), y.flatten())

    if args.compile:
        loss_of = torch.compile(loss_of)
    inputs, labels = samples(case)
    batch, warmup = case["batch"], case["warmup"]
    steps = args.steps or case["steps"]
    seconds, losses = [], []
    for step in range(warmup + steps):
        began = time.perf_counter()
        at = step * batch % (SAMPLES - batch + 1)
        loss = loss_of(inputs[at : at + batch], labels[at : at + batch])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - began)
        if step == 0:
            first = since_process_start()
    assert all(map(math.isfinite, losses))
    result = {
        "case": args.case,
        "precision": args.precision,
        "who": "PyTorch compiled" if args.compile else "PyTorch",
        "version": torch.__version__,
        "parameters": parameters,
        "seconds": statistics.median(seconds[warmup:]),
        "fastest": min(seconds[warmup:]),
        "first_step": first,
        "peak_bytes": peak_bytes(),
        "first_loss": losses[0],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
