"""The table of a run of bench/run: python bench/report.py RESULTS.jsonl "PROCESSOR"."""

import collections
import json
import math
import pathlib
import statistics
import sys

CASES = json.loads((pathlib.Path(__file__).parent / "cases.json").read_text())


def flops(case):
    """Multiply-adds of matrix products of what is timed, times 2; causal attention counts the half that is needed."""
    m = case["model"]
    if case["task"] == "classify":
        return 2 * case["batch"] * case["multiply_adds"]
    if "multiply_adds" in case:
        # The gradient of the pixels is not needed.
        return 2 * case["batch"] * (3 * case["multiply_adds"] - case["first_multiply_adds"])
    if case["architecture"] == "mlp":
        sizes = [m["channels"] * m["height"] * m["width"], *m["hidden"], m["classes"]]
        products = [a * b for a, b in zip(sizes, sizes[1:])]
        return 2 * case["batch"] * (3 * sum(products) - products[0])
    c, t = m["width"], case["length"]
    weights, attention = t * m["layers"] * 12 * c * c, m["layers"] * t * t * c
    if case["task"] == "prompt":
        return 2 * (weights + attention + m["vocab"] * c)
    if case["architecture"] == "gpt2":
        return 6 * case["batch"] * (weights + attention + t * m["vocab"] * c)
    # Every token sees all, and only the first is classified.
    return 6 * case["batch"] * (weights + 2 * attention + c * c + m["classes"] * c)


def peak(records, precision):
    """The peak while a case ran in this precision: the higher one of before and after each turn, and of those the median."""
    found = [r[precision] * 1e9 for r in records if r[precision] is not None]
    turns = [max(pair) for pair in zip(found[::2], found[1::2])]
    return statistics.median(turns) if turns else math.nan


def rate(case, seconds, limit, record):
    """What a case does in a second, and the share of this machine's limit for it."""
    if case["task"] == "decode":
        # Every weight is read once for a token.
        read = record["parameters"] * {"f32": 4, "bf16": 2}[record["precision"]] / seconds
        return f"{1 / seconds:.1f} tokens/s", read / limit
    done = flops(case) / seconds
    return f"{done / 1e9:.{0 if done >= 1e10 else 1}f} GFLOP/s", done / limit


def time(seconds):
    return f"{seconds:.3f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms" if seconds >= 1e-2 else f"{seconds * 1e6:.0f} µs"


def main():
    results, processor = sys.argv[1:]
    found, peaks = collections.defaultdict(list), collections.defaultdict(list)
    for line in pathlib.Path(results).read_text().splitlines():
        record = json.loads(line)
        kind = peaks if record["who"] == "peak" else found
        kind[record["case"], record["precision"], record["who"]].append(record)
    limits = {(name, precision): peak(records, precision) for (name, precision, _), records in peaks.items()}
    versions = sorted({f"{r['who']} {r['version']}" for records in found.values() for r in records})
    print(f"{processor} · {' · '.join(versions)}", end="\n\n")
    gemm = {key[1:]: found.pop(key) for key in list(found) if key[0] == "gemm"}
    if found:
        steps(found, limits)
    if found and gemm:
        print()
    if gemm:
        products(gemm, limits)


def steps(found, limits):
    """The table of everything but single products."""
    columns = ["case", "", "who", "median", "best peer / this", "rate", "limit", "of it", "start to first", "peak memory", "of best peer's"]
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for name, case in CASES.items():
        for precision in case["precisions"]:
            turns = {who: records for (n, p, who), records in found.items() if (n, p) == (name, precision)}
            medians = {who: statistics.median(r["seconds"] for r in records) for who, records in turns.items()}
            memory = {who: max(r["peak_bytes"] for r in records) for who, records in turns.items()}
            limit = limits.get((name, precision), math.nan)
            unit = "GFLOP/s"
            if case["task"] == "decode":
                limit, unit = max((r["read_bandwidth"] for r in turns.get("Tenon", [])), default=math.nan), "GB/s"
            best = min((who for who in turns if who != "Tenon"), key=medians.get, default=None)
            for who, records in turns.items():
                done, share = rate(case, medians[who], limit, records[0])
                cells = [
                    case["title"],
                    precision,
                    who,
                    time(medians[who]),
                    f"{medians[best] / medians[who]:.2f}" if best else "-",
                    done,
                    f"{limit / 1e9:.0f} {unit}" if limit == limit else "-",
                    f"{100 * share:.0f}%" if share == share else "-",
                    f"{statistics.median(r['first_step'] for r in records):.1f} s",
                    f"{memory[who] / 2**20:.0f} MiB",
                    f"{memory[who] / memory[best]:.2f}" if best else "-",
                ]
                print("| " + " | ".join(cells) + " |")


def products(gemm, limits):
    """The table of single products; of the shapes m x n x k, A and B are transposed in memory where the letter is t."""
    columns = ["product", "", "peak", "Tenon", "of peak", "B packed", "of peak", "PyTorch", "of peak", "PyTorch / Tenon"]
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for name in CASES["gemm"]["products"]:
        for precision in CASES["gemm"]["precisions"]:
            limit, medians = limits.get(("gemm", precision), math.nan), []
            cells = [f"{limit / 1e9:.0f}" if limit == limit else "-"]
            for who, kind in [("Tenon", "products"), ("Tenon", "packed"), ("PyTorch", "products")]:
                records = gemm.get((precision, who), [])
                seconds = statistics.median(r[kind][name] for r in records) if records else math.nan
                done = 2 * math.prod(map(int, name.split(":")[0].split("x"))) / seconds
                cells += [f"{done / 1e9:.0f}", f"{100 * done / limit:.0f}%"]
                medians.append(seconds)
            print("| " + " | ".join([name, precision, *cells, f"{medians[2] / medians[0]:.2f}"]) + " |")


if __name__ == "__main__":
    main()
