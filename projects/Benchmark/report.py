#!/usr/bin/env python3
"""docs/benchmarks.md and its plots, made from the files of results in docs/benchmarks/.

python projects/Benchmark/report.py output/benchmark/cpu-*.json    # adds these runs first
python projects/Benchmark/report.py                                # makes the document anew
"""

from __future__ import annotations

import argparse
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aims import NOT_MEASURED, aims_table
from results import CASE, Row, describe, groups, read
from tabulate import tabulate
from variants import ARCHITECTURES

from gnws_d2.files import atomic_write
from gnws_d2.marked_text import replace_marked

DOCS = Path(__file__).parents[2] / "docs"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="*", type=Path, metavar="RESULTS.json")
    folder = DOCS / "benchmarks"
    folder.mkdir(exist_ok=True)
    for file in parser.parse_args().results:
        read(file)  # refuses another form
        shutil.copy(file, folder)
    import plots  # needs matplotlib, which the tables do not

    files = committed(folder)
    pictures = {name: plots.draw(run, folder / Path(name).stem) for name, run in files.items()}
    document = DOCS / "benchmarks.md"
    text = fill(document.read_text(encoding="utf-8"), files)
    with atomic_write(document) as partial:
        partial.write_text(text, encoding="utf-8")
    print(document, *(p for drawn in pictures.values() for p in drawn), sep="\n")


def write_beside(file: Path) -> list[Path]:
    """The tables of a file of results in Markdown, and its plots, in the same folder."""
    run, tables = read(file), file.with_suffix(".md")
    with atomic_write(tables) as partial:
        partial.write_text(section(file.name, run, folder="") + "\n", encoding="utf-8")
    try:
        import plots
    except ImportError as error:
        print(f"No plots: {error}. pip install matplotlib")
        return [tables]
    return [tables, *plots.draw(run, file.with_suffix(""))]


def committed(folder: Path) -> dict[str, dict]:
    """All results of the folder by the name of their file."""
    return {file.name: read(file) for file in sorted(folder.glob("*.json"))}


def fill(text: str, files: dict[str, dict]) -> str:
    """``text`` with what is between its two marks made anew."""
    sections = [aims(files), coverage(files), *(section(*item) for item in files.items())]
    return replace_marked(text, "results", "\n\n".join(sections))


def aims(files: dict[str, dict]) -> str:
    header = ["aim", "measured", "run", "ratio", "control", ""]
    return "## Aims\n\n" + _table(aims_table(files), header)


def coverage(files: dict[str, dict]) -> str:
    """What has been measured of what there is to measure."""
    lines = []
    for model in ARCHITECTURES:
        line = [model]
        for device, precision in (
            ("cpu", "fp32"),
            *(("cuda", p) for p in ("fp32", "tf32", "bf16")),
        ):
            done = {
                f"{row['level']} {row['mode']}": None
                for run in files.values()
                for row in run["rows"]
                if row["model"] == model
                and row["device"].startswith(device)
                and row["precision"] == precision
            }
            line.append(", ".join(done) or NOT_MEASURED)
        lines.append(line)
    header = ["model", "CPU", "GPU, fp32", "GPU, TF32", "GPU, bf16"]
    return "## What has been measured\n\n" + _table(lines, header)


def section(name: str, run: dict[str, Any], folder: str = "benchmarks/") -> str:
    """One run: where it was made, and its tables, by level and mode. Its files are in ``folder``,
    as seen from the document."""
    stem = Path(name).stem
    versions = ", ".join(f"{k} {v}" for k, v in run["versions"].items() if v)
    commit = f" at {run['commit']}" if run.get("commit") else ""
    parts = [
        f"## {stem}: {run['machine']}, {run['threads']} threads",
        f"`python projects/Benchmark/benchmark.py {run['command']}`{commit}, {run['date']} "
        f"({versions}; load of the machine at the start {run['load']}). Raw times: "
        f"[{name}]({folder}{name}).",
    ]
    for (level, mode), rows in groups(run["rows"], ("level", "mode")):
        title = "training step" if mode == "train" else "inference"
        picture = f"{folder}{stem}-{level}-{mode}"
        parts += [
            f"### {level.capitalize()}, {title}",
            f"![time of the variants, {level}, {title}]({picture}.png) ([SVG]({picture}.svg))",
        ]
        for (base,), of_base in groups(rows, ("base",)):
            parts += tables(of_base, base)
    return "\n\n".join(parts)


def tables(rows: list[Row], base: str) -> list[str]:
    """Of rows that are divided by the same variant."""
    parts = [
        f"Time divided by that of {base}, with a 95% interval:",
        pivot(rows, lambda row: f"{statistics.median(row['seconds']) * 1e3:.4g} ms", _interval),
    ]
    parts += ["Peak memory:", pivot(rows, _megabytes, _memory_ratio)]
    if any(row["launches"] for row in rows):
        parts += ["Kernel launches:", pivot(rows, _launches, lambda row, _: _launches(row))]
    return [*parts, "Largest relative errors against float64:", errors(rows)]


def pivot(
    rows: list[Row], absolute: Callable[[Row], str], relative: Callable[[Row, Row], str]
) -> str:
    """A line for each case, a column for each variant: an absolute figure of what the others are
    divided by, and ratios of those."""
    names = list(dict.fromkeys(row["variant"] for row in rows if row["variant"] != row["base"]))
    lines = []
    for _, of_case in groups(rows, CASE):
        by_name = {row["variant"]: row for row in of_case}
        base = by_name[of_case[0]["base"]]
        line = [describe(base), absolute(base)]
        line += [relative(by_name[n], base) if n in by_name else "-" for n in names]
        lines.append(line)
    return _table(lines, ["", rows[0]["base"], *names])


def errors(rows: list[Row]) -> str:
    """The worst over all cases, for each variant and precision."""
    lines = []
    for (variant, precision), found in groups(rows, ("variant", "precision")):
        columns = zip(*(row["errors"] for row in found), strict=True)
        worst = [max((e for e in column if e is not None), default=None) for column in columns]
        lines.append([variant, precision, *("-" if e is None else f"{e:.0e}" for e in worst)])
    return _table(lines, ["variant", "precision", "layer", "output", "gradient"])


def _interval(row: Row, _: Row) -> str:
    median, low, high = row["ratio"]
    return f"{median:.3f} ({low:.3f} to {high:.3f})"


def _megabytes(row: Row) -> str:
    return f"{row['memory'] / 1e6:.4g} MB"


def _launches(row: Row) -> str:
    return str(row["launches"])


def _memory_ratio(row: Row, base: Row) -> str:
    return f"{row['memory'] / base['memory']:.3f}"


def _table(rows: list[list[str]], header: list[str]) -> str:
    return tabulate(rows, header, tablefmt="github", disable_numparse=True)


if __name__ == "__main__":
    main()
