"""The command that compares the rules of assigning, on a small model."""

import assignment
import pytest


@pytest.mark.slow
def test_every_part_has_a_row(monkeypatch, capsys):
    words = ["--config-file", "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml", "--device", "cpu"]
    words += ["--sizes", "64", "96", "96", "64", "--rounds", "2", "--whole-step"]
    monkeypatch.setattr("sys.argv", ["assignment.py", *words])
    assignment.main()
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    parts = ["anchors", "losses of the RPN", "proposals", "all three", "training step"]
    assert [row[0].strip() for row in rows] == parts
    for _, theirs, ours, ratio, interval in rows:
        low, high = map(float, interval.split(" to "))
        assert float(theirs) > 0 and float(ours) > 0 and low <= float(ratio) <= high
