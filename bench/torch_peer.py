"""The cases of bench/cases.json in PyTorch: python bench/torch_peer.py CASE f32|bf16 THREADS [--compile] [--steps N]

Prints one JSON line. Training: fused AdamW, fused attention, gradients set to None, bf16 through autocast with f32 weights.
Generation: a cache of keys and values of fixed size, no gradients.
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
import torchvision

CASES = json.loads((pathlib.Path(__file__).parent / "cases.json").read_text())


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.c_fc, self.mlp_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x, cache=None, places=None):
        b, t, c = x.shape
        heads = (b, t, self.heads, c // self.heads)
        q, k, v = (part.view(heads).transpose(1, 2) for part in self.c_attn(self.ln_1(x)).split(c, dim=2))
        if cache is not None:
            keys, values = (kept.index_copy_(2, places, new) for kept, new in zip(cache, (k, v)))
        if cache is not None and t == 1:
            seen = torch.arange(keys.shape[2]) <= places[:, None]
            y = F.scaled_dot_product_attention(q, keys, values, attn_mask=seen)
        else:
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

    def next(self, ids, caches, places):
        """The likeliest token after ids, either the first of the text or one that follows; their keys and values are kept."""
        x = self.wte(ids) + self.wpe(places)
        for block, cache in zip(self.blocks, caches):
            x = block(x, cache, places)
        return F.linear(self.ln_f(x[:, -1:]), self.wte.weight).argmax(-1)


class Encoder(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.attention_output, self.attention_norm = nn.Linear(width, width), nn.LayerNorm(width, eps=1e-12)
        self.intermediate, self.output = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x):
        b, t, c = x.shape
        heads = (b, t, self.heads, c // self.heads)
        q, k, v = (part(x).view(heads).transpose(1, 2) for part in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, c)
        x = self.attention_norm(x + self.attention_output(y))
        return self.mlp_norm(x + self.output(F.gelu(self.intermediate(x))))


class Bert(nn.Module):
    def __init__(self, vocab, context, types, layers, width, heads, classes):
        super().__init__()
        self.words, self.places, self.types = (nn.Embedding(rows, width) for rows in (vocab, context, types))
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(Encoder(width, heads) for _ in range(layers))
        self.pooler, self.classifier = nn.Linear(width, width), nn.Linear(width, classes)
        for name, p in self.named_parameters():
            if p.ndim > 1:
                nn.init.normal_(p, 0.0, 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, ids, types):
        x = self.norm(self.words(ids) + self.places.weight[: ids.shape[1]] + self.types(types))
        for layer in self.layers:
            x = layer(x)
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))


def mlp(channels, height, width, hidden, classes):
    sizes = [channels * height * width, *hidden]
    layers = [nn.Flatten()]
    for a, b in zip(sizes, sizes[1:]):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], classes))


def resnet50(size, classes):
    return torchvision.models.resnet50(num_classes=classes)


def efficientnet_b0(size, classes):
    model = torchvision.models.efficientnet_b0(dropout=0.0, stochastic_depth_prob=0.0, num_classes=classes)
    for block in model.modules():
        # Nothing is dropped, so nothing should be computed for it.
        if isinstance(block, torchvision.ops.StochasticDepth):
            block.p, block.forward = 0.0, lambda x: x
    return model


def vit(channels, height, width, classes):
    assert (channels, height) == (3, width)
    return torchvision.models.vit_b_16(image_size=height, num_classes=classes)


VISION = {"bench/resnet50.star": resnet50, "bench/efficientnet_b0.star": efficientnet_b0, "vit": vit}


def samples(case):
    """Random inputs, and labels, made before anything is timed."""
    model, samples = case["model"], case["samples"]
    if case["architecture"] in ("mlp", *VISION):
        shape = [model["channels"], model["height"], model["width"]] if "channels" in model else [3] + 2 * [model["size"]]
        pixels = torch.rand(samples, *shape)
        if case["architecture"] in VISION:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        return [pixels], torch.randint(0, model["classes"], (samples,))
    if case["architecture"] == "gpt2":
        tokens = torch.randint(0, model["vocab"], (samples, case["length"] + 1))
        return [tokens[:, :-1].contiguous()], tokens[:, 1:].contiguous()
    shape = (samples, case["length"])
    inputs = [torch.randint(0, model[below], shape) for below in ("vocab", "types")]
    return inputs, torch.randint(0, model["classes"], (samples,))


def since_process_start():
    """Seconds, of which Linux counts hundredths."""
    started = int(pathlib.Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19]) / 100
    return float(pathlib.Path("/proc/uptime").read_text().split()[0]) - started


def peak_bytes():
    status = pathlib.Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def train(case, model, steps, args):
    """Times steps of training."""
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=1e-4,
        betas=(0.9, 0.95),
        fused=True,
    )
    bf16 = args.precision == "bf16"

    def loss_of(inputs, labels):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            return F.cross_entropy(model(*inputs).flatten(0, -2), labels.flatten())

    if args.compile:
        loss_of = torch.compile(loss_of)
    inputs, labels = samples(case)
    batch = case["batch"]
    seconds, losses = [], []
    for step in range(steps):
        began = time.perf_counter()
        at = step * batch % (case["samples"] - batch + 1)
        loss = loss_of([x[at : at + batch] for x in inputs], labels[at : at + batch])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - began)
        if step == 0:
            first = since_process_start()
    assert all(map(math.isfinite, losses))
    return seconds, first, {"first_loss": losses[0]}


@torch.inference_mode()
def classify(case, model, steps, args):
    """Times the classification of one batch of images."""
    model, ([pixels], _) = model.eval(), samples(case)
    if args.precision == "bf16":
        model, pixels = model.bfloat16(), pixels.bfloat16()
    if args.compile:
        model = torch.compile(model)
    seconds = []
    for step in range(steps):
        began = time.perf_counter()
        model(pixels)
        seconds.append(time.perf_counter() - began)
        if step == 0:
            first = since_process_start()
    return seconds, first, {}


@torch.inference_mode()
def generate(case, model, steps, args):
    """Times the reading of a prompt or, for `decode`, each token after it."""
    model = model.eval()
    if args.precision == "bf16":
        model = model.bfloat16()
    decoding = case["task"] == "decode"
    length, tokens = case["length"], case["tokens"] if decoding else 0
    config, dtype = case["model"], model.wte.weight.dtype
    shape = (1, config["heads"], length + tokens, config["width"] // config["heads"])
    caches = [[torch.zeros(shape, dtype=dtype) for _ in range(2)] for _ in range(config["layers"])]
    prompt = torch.randint(0, config["vocab"], (1, length))
    places = torch.arange(length + tokens)
    following = torch.compile(model.next) if args.compile else model.next
    # What is not timed needs no compilation.
    reading = model.next if decoding else following
    seconds = []
    for step in range(steps):
        began = time.perf_counter()
        token = reading(prompt, caches, places[:length])
        if step == 0:
            first = since_process_start()
        if decoding:
            began = time.perf_counter()
            for place in range(length, length + tokens):
                token = following(token, caches, places[place : place + 1])
        token.item()
        seconds.append((time.perf_counter() - began) / max(tokens, 1))
    return seconds, first, {}


@torch.inference_mode()
def gemm(case, precision):
    """The median seconds of each product, B transposed in memory where it says so; PyTorch has no packed form of its own."""
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[precision]

    def operand(rows, cols, transposed):
        return torch.randn(cols, rows).to(dtype).t() if transposed == "t" else torch.randn(rows, cols).to(dtype)

    products = {}
    for name in case["products"]:
        sizes, transposed = name.split(":")
        m, n, k = map(int, sizes.split("x"))
        a, b, out = operand(m, k, transposed[0]), operand(k, n, transposed[1]), torch.empty(m, n, dtype=dtype)
        torch.mm(a, b, out=out)
        seconds, began = [], time.perf_counter()
        while len(seconds) < 3 or time.perf_counter() - began < 0.3:
            once = time.perf_counter()
            torch.mm(a, b, out=out)
            seconds.append(time.perf_counter() - once)
        products[name] = statistics.median(seconds)
    return products


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
    if case["task"] == "gemm":
        result = {"case": args.case, "precision": args.precision, "who": "PyTorch", "version": torch.__version__}
        print(json.dumps(result | {"products": gemm(case, args.precision)}))
        return
    model = ({"gpt2": Gpt2, "mlp": mlp} | VISION).get(case["architecture"], Bert)(**case["model"]).train()
    if case["architecture"] in VISION:
        model = model.to(memory_format=torch.channels_last)
    parameters = sum(p.numel() for p in model.parameters())
    warmup = case["warmup"]
    run = {"train": train, "classify": classify}.get(case["task"], generate)
    seconds, first, more = run(case, model, warmup + (args.steps or case["steps"]), args)
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
        **more,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
