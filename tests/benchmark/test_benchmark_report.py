"""The documents' tables are what the results say."""

import re

import report
from results import read


def test_every_number_of_the_page_is_measured():
    """Ratios in sentences, too."""
    known = set()
    for row in report.measured({file.name: read(file) for file in report.RUNS.glob("*.json")}):
        known.update(f"{value:.3f}" for value in (*row["ratio"], row["memory"]))
    text = (report.ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    numbers = set(re.findall(r"\b\d\.\d{3}\b", text))
    assert len(numbers) > 50 and numbers <= known
