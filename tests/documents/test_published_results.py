"""MODEL_ZOO.md, the README and the metafile have the numbers, names and hashes of the data file."""

import csv
import re
from pathlib import Path

import pytest
import yaml

import gnws_d2

ROOT = Path(__file__).parents[2]
DATA = Path(gnws_d2.__file__).parent / "model_zoo" / "checkpoints.csv"
ROWS = list(csv.DictReader(DATA.read_text(encoding="utf-8").splitlines()))
DETECTORS = [row for row in ROWS if row["box_ap"]]
BACKBONES = [row for row in ROWS if not row["box_ap"]]


def tables(document: str) -> list[list[str]]:
    """The cells of all rows of its tables that link to a file."""
    lines = (ROOT / document).read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "](" in line]
    return [row for row in rows if len(row) > 1]


def results(row: dict[str, str]) -> list[str]:
    stem = Path(row["config"]).stem
    schedule = stem.partition("_gn_ws_")[2].replace("_", "-")
    numbers = (row[key] or "-" for key in ("box_ap", "mask_ap", "train_mem_gb", "inference_ms"))
    return [f"[{stem}](configs/{row['config']})", schedule, *numbers]


def published(row: dict[str, str]) -> list[str]:
    sha256 = re.search(r"-(\w{8})\.pth$", row["url"])[1]
    return [f"[{row['name']}]({row['url']})", f"`{sha256}`"]


def test_the_tables():
    assert len(DETECTORS) == 12 and len(BACKBONES) == 6
    assert [row for row in tables("README.md") if len(row) == 6] == list(map(results, DETECTORS))
    expected = [results(row) + published(row) for row in DETECTORS]
    assert tables("MODEL_ZOO.md") == expected + list(map(published, BACKBONES))


@pytest.mark.parametrize("row", DETECTORS, ids=lambda row: row["name"])
def test_the_metafile_in_the_form_of_openmmlabs_model_index(row):
    index = yaml.safe_load((ROOT / "configs" / "metafile.yml").read_text(encoding="utf-8"))
    [model] = [model for model in index["Models"] if model["Name"] == row["name"]]
    assert model["In Collection"] in [collection["Name"] for collection in index["Collections"]]
    assert model["Weights"] == row["url"] and model["Config"] == f"configs/{row['config']}"
    metadata = model["Metadata"]
    assert metadata["Training Memory (GB)"] == float(row["train_mem_gb"])
    assert metadata["Epochs"] == int(row["epochs"])
    times = [entry["value"] for entry in metadata.get("inference time (ms/im)", [])]
    assert times == ([float(row["inference_ms"])] if row["inference_ms"] else [])
    metrics = {key: value for r in model["Results"] for key, value in r["Metrics"].items()}
    aps = {"box AP": row["box_ap"], "mask AP": row["mask_ap"]}
    assert metrics == {key: float(value) for key, value in aps.items() if value}


def test_the_version_is_that_of_the_citation_and_the_change_log():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    [version, date] = re.search(r"^## (\S+) \((\S+)\)", changes, re.MULTILINE).groups()
    assert version == gnws_d2.__version__ == citation["version"]
    assert date == str(citation["date-released"])


def test_each_situation_of_the_reports_has_a_test():
    """docs/reports.md names, for each situation, a test that exists."""
    rows = [line.split("|") for line in (ROOT / "docs/reports.md").read_text().splitlines()]
    rows = [row for row in rows if len(row) == 6 and "---" not in row[1] and row[4] != " test "]
    files = (ROOT / "tests").rglob("test_*.py")
    known = {name for f in files for name in re.findall(r"^def (test_\w+)\(", f.read_text(), re.M)}
    named = [set(re.findall(r"`(\w+)`", row[4])) for row in rows]
    assert len(rows) > 30 and all(named) and set().union(*named) <= known
