"""The attribution benchmark's tables on the terminal."""

from __future__ import annotations

from benchmark_support.tables import gigabytes, table


def comparison_table(models: dict[str, dict]) -> str:
    rows = []
    for name, found in models.items():
        for side in ("ours", "reference"):
            if side in found:
                figures = found[side]
                rows.append(
                    [
                        f"{name}, {side}",
                        f"{figures['median_seconds']:.2f} s",
                        f"{figures['seconds_per_pair']:.3f} s",
                        f"{figures['median_processor_seconds']:.2f} s",
                        gigabytes(figures["peak_bytes"]),
                        gigabytes(figures["peak_bytes_above_loaded"]),
                    ]
                )
        if "reference" in found:
            ratios = [f"{found[key]:.2f} ×" for key in ("speedup", "speedup", "speedup_processor")]
            memory = [f"{found[key]:.3f}" for key in ("peak_memory_ratio", "peak_memory_ratio_above_loaded")]
            rows.append([f"{name}, speedup; share of memory", *ratios, *memory])
    return table(["", "median", "a pair", "processor", "peak memory", "above the model"], rows)


def growth_table(rows: list[dict]) -> str:
    header = ["ours alone", "pairs", "m", "median", "processor", "a pair and step", "peak memory"]
    cells = []
    for row in rows:
        each = row["median_processor_seconds"] / row["pairs"] / row["steps"]
        figures = [str(row["pairs"]), str(row["steps"]), f"{row['median_seconds']:.2f} s"]
        figures += [f"{row['median_processor_seconds']:.2f} s", f"{each:.4f} s"]
        cells.append([row["model"], *figures, gigabytes(row["peak_bytes"])])
    return table(header, cells)
