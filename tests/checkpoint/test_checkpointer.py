"""What is read from a file is tensors and plain values, or an error."""

import os
import pickle

import pytest
import torch
from torch import nn

from gnws_d2.checkpoint import Checkpointer, CheckpointError


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_a_good_file_is_loaded(tmp_path):
    source, model = nn.Linear(3, 2), nn.Linear(3, 2)
    torch.save({"model": source.state_dict()}, tmp_path / "good.pth")
    Checkpointer(model).load(str(tmp_path / "good.pth"))
    assert torch.equal(model.weight, source.weight)


def test_a_program_in_a_pth_file_is_not_run(tmp_path):
    file, target = tmp_path / "bad.pth", tmp_path / "made"
    torch.save({"model": Malicious(target)}, file)
    with pytest.raises(CheckpointError, match=r"bad\.pth holds more than tensors"):
        Checkpointer(nn.Linear(3, 2)).load(str(file))
    assert not target.exists()


@pytest.mark.parametrize("suffix", [".pkl", ".pyth"])
def test_a_pickle_is_refused_unread(tmp_path, suffix):
    file, target = tmp_path / f"bad{suffix}", tmp_path / "made"
    file.write_bytes(pickle.dumps(Malicious(target)))
    with pytest.raises(CheckpointError, match="is a pickle"):
        Checkpointer(nn.Linear(3, 2)).load(str(file))
    assert not target.exists()


@pytest.mark.parametrize("size", [0, 10, 600, -20])
def test_a_damaged_file_is_named(tmp_path, size):
    file = tmp_path / "cut.pth"
    torch.save({"model": nn.Linear(30, 20).state_dict()}, file)
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"cut\.pth.*(damaged|no checkpoint)"):
        Checkpointer(nn.Linear(30, 20)).load(str(file))
