"""The table of a run of bench/run: python bench/report.py RESULTS.jsonl "PEAK LINES" "PROCESSOR"."""

import collections
import json
import pathlib
import re
import statistics
import sys

CASES = json.loads((pathlib.Path(__file__).parent / "cases.json").read_text())


def flops(case):
    """Multiply-adds of matrix products of a step, times 2; causal attention counts the half that is needed."""
    m, batch = case["model"], case["batch"]
    if case["architecture"] == "mlp":
        sizes = [m["channels"] * m["height"] * m["width"], *m["hidden"], m["classes"]]
        products = [a * b for a, b in zip(sizes, sizes[1:])]
        # The gradient of the pixels is not needed.
        return 2 * batch * (3 * sum(products) - products[0])
    c, t = m["width"], case["length"]
    weights = m["layers"] * 12 * c * c + m["vocab"] * c
    attention = m["layers"] * t * c
    return 6 * batch * t * (weights + attention)


def time(seconds):
    return f"{seconds:.3f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms" if seconds >= 1e-2 else f"{seconds * 1e6:.0f} µs"


def main():
    results, peak_lines, processor = sys.argv[1:]
    found = collections.defaultdict(list)
    for line in pathlib.Path(results).read_text().splitlines():
        record = json.loads(line)
        found[record["case"], record["precision"], record["who"]].append(record)
    peaks = {}
    for kind, value in re.findall(r"(f32|bf16) ([\d.]+)", peak_lines):
        peaks[kind] = max(float(value), peaks.get(kind, 0.0))
    versions = sorted({f"{r['who']} {r['version']}" for records in found.values() for r in records})
    print(f"{processor} · {' · '.join(versions)}")
    print(", ".join(f"peak {kind} {value:.0f} GFLOP/s" for kind, value in peaks.items()), end="\n\n")
    columns = ["step of", "", "who", "step (median)", "PyTorch / this", "GFLOP/s", "of peak", "start to first step", "peak memory"]
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for name, case in CASES.items():
        for precision in ["f32", "bf16"]:
            medians = {
                who: statistics.median(r["seconds"] for r in records)
                for (n, p, who), records in found.items()
                if (n, p) == (name, precision)
            }
            for who, seconds in medians.items():
                records = found[name, precision, who]
                rate = flops(case) / seconds / 1e9
                share = rate / peaks.get(precision, float("nan"))
                cells = [
                    case["title"],
                    precision,
                    who,
                    time(seconds),
                    f"{medians['PyTorch'] / seconds:.2f}" if "PyTorch" in medians else "-",
                    f"{rate:.0f}" if rate >= 10 else f"{rate:.1f}",
                    f"{100 * share:.0f}%" if share == share else "-",
                    f"{statistics.median(r['first_step'] for r in records):.1f} s",
                    f"{max(r['peak_bytes'] for r in records) / 2**20:.0f} MiB",
                ]
                print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
