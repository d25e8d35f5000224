"""A training set that two processes have in memory once."""

import json

import pytest
from processes import run

# Two processes; argv[1] says what they load, and each writes what it got and from where.
PROGRAM = """
import contextlib, functools, json, sys, tempfile
import torch.multiprocessing as mp
from torch.utils.data import DataLoader
from detectron2.utils import comm
from gnws_d2.data import SharedRecords, load_once
from gnws_d2.engine import launch
from gnws_d2.errors import DatasetError
mp.start_processes = functools.partial(mp.start_processes, start_method="fork")
OBJECTS = [[{"bbox": [0.1 * i] * 4}] * i for i in range(5)]
RECORDS = [{"file_name": f"{i}.jpg", "annotations": listed} for i, listed in enumerate(OBJECTS)]
def main(what, file):
    loads = []
    if what == "full":
        full = open("/dev/full", "wb", buffering=0)
        tempfile.NamedTemporaryFile = lambda **how: contextlib.nullcontext(full)
    def load():
        loads.append(1)
        if what == "refuse":
            raise DatasetError("no such data")
        return tuple(RECORDS) if what == "other" else RECORDS
    got = load_once(load)
    got[1]["file_name"] = "changed"  # its own dict
    kind = isinstance(got, SharedRecords)
    workers = DataLoader(got, num_workers=2, batch_size=None, collate_fn=lambda x: x)
    found = {"loads": len(loads), "shared": kind, "got": list(got), "workers": list(workers)}
    with open(f"{file}.{comm.get_rank()}", "w") as stream:
        json.dump(found, stream)
launch(main, 2, dist_url="auto", args=tuple(sys.argv[1:]), device=lambda: "cpu")
"""
pytestmark = pytest.mark.slow


def run_both(folder, what):
    program = folder / "program.py"
    program.write_text(PROGRAM)
    return run(program, what, folder / "found")


def test_the_first_process_loads_a_list_for_both_and_their_workers(tmp_path):
    assert run_both(tmp_path, "list").returncode == 0
    first, second = (json.loads((tmp_path / f"found.{rank}").read_text()) for rank in (0, 1))
    assert (first["loads"], second["loads"]) == (1, 0)
    assert first["shared"] and second["shared"]
    expected = [[0.1 * i] * 4 for i in range(5) for _ in range(i)]
    for got in (first["got"], second["got"], first["workers"], second["workers"]):
        assert [record["file_name"] for record in got] == [f"{i}.jpg" for i in range(5)]
        assert [a["bbox"] for record in got for a in record["annotations"]] == expected


@pytest.mark.parametrize("what", ["other", "full"])
def test_a_dataset_of_another_kind_or_without_room_is_loaded_by_each(tmp_path, what):
    assert run_both(tmp_path, what).returncode == 0
    for rank in (0, 1):
        found = json.loads((tmp_path / f"found.{rank}").read_text())
        assert found["loads"] == 1 and not found["shared"]


def test_what_the_first_cannot_load_is_said_once_and_the_other_ends(tmp_path):
    done = run_both(tmp_path, "refuse")
    said = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert done.returncode == 1 and said == ["error: no such data"]
