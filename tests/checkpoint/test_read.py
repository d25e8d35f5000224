"""What torch and pickle write is read as they read it, and nothing in it is executed."""

import collections
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gnws_d2.checkpoint import Provenance, read_checkpoint
from gnws_d2.checkpoint.read import Unread
from gnws_d2.errors import CheckpointError

# As MMEngine 0.10.7 wrote it, in a training by MMDetection 3.3.0; without most of its tensors.
MMENGINE = Path(__file__).with_name("mmengine_checkpoint.pth")

ARRAYS = [
    *(np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3)), np.array(2.5)),
    *(np.arange(3, dtype=">f4"), np.zeros((0, 3)), np.arange(5)[::2], np.array([True, False])),
]
PLAIN = [
    *(None, True, 1, 2**70, 2.5, 1 + 2j, "x", "ü", b"a\xff", b"", bytearray(b"12"), (1, (2, [3]))),
    *({1, 2}, frozenset({3}), {"a": {"b": []}}, collections.OrderedDict(a=1)),
    *(collections.defaultdict(int, a=3), np.float64(2.5), np.int64(3), np.bool_(True)),
]
BASE = torch.randn(4, 6)
TENSORS = [
    *(BASE, BASE.t(), BASE[1:3], BASE[:, 2], torch.tensor(3.0), torch.empty(0, 3)),
    *(torch.zeros(1).expand(3, 3), nn.Parameter(torch.randn(3)), torch.Size((2, 3)), torch.float16),
    *(BASE.half(), BASE.bfloat16(), BASE.double(), BASE.long(), BASE > 0, BASE + 1j * BASE),
    BASE.abs().to(torch.uint16),
]


def assert_same(found, expected):
    if isinstance(expected, (np.ndarray, torch.Tensor)):
        is_swapped = isinstance(expected, np.ndarray) and not expected.dtype.isnative
        assert found.dtype == (expected.dtype.newbyteorder() if is_swapped else expected.dtype)
        assert found.shape == expected.shape
        assert (found == expected).all()
    elif isinstance(expected, (set, frozenset)):
        assert found == list(expected)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle(tmp_path, protocol):
    content = [*ARRAYS, *PLAIN, *(TENSORS if protocol > 1 else ())]
    (tmp_path / "file.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    assert_same(read_checkpoint(tmp_path / "file.pkl"), content)


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("is_zip", [True, False])
def test_a_file_of_torch(tmp_path, protocol, is_zip):
    module = nn.BatchNorm2d(3)
    content = [*TENSORS, *ARRAYS, *PLAIN, module.state_dict()]
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": is_zip}
    torch.save(content, tmp_path / "file.pth", **options)
    found = read_checkpoint(tmp_path / "file.pth")
    assert_same(found[:-1], content[:-1])
    assert found[1].data_ptr() == found[0].data_ptr()  # as views of one storage
    assert found[-1]._metadata == module.state_dict()._metadata
    assert nn.BatchNorm2d(3).load_state_dict(found[-1])


def test_a_file_of_python_2(tmp_path):
    """An array as Python 2 pickled it, in protocol 2: its bytes are text."""
    pickled = (
        b"\x80\x02}q\x00U\x01wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01"
        b"b\x87R(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff"
        b"\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08\x00\x00\x80?\x00\x00\xc0\xbftbs."
    )
    (tmp_path / "file.pkl").write_bytes(pickled)
    expected = pickle.loads(pickled, encoding="latin1")["w"]
    assert_same(read_checkpoint(tmp_path / "file.pkl")["w"], expected)


def test_a_file_of_mmengine(caplog):
    caplog.set_level("INFO")
    found = read_checkpoint(MMENGINE)
    shapes = {name: tuple(tensor.shape) for name, tensor in found["state_dict"].items()}
    assert shapes == {
        "backbone.conv1.weight": (64, 3, 7, 7),
        **dict.fromkeys(("backbone.gn1.weight", "backbone.gn1.bias"), (64,)),
    }
    assert found["meta"]["iter"] == 750
    assert Provenance.read(found).classes == list("0123456789")
    assert isinstance(found["message_hub"]["log_scalars"]["train/loss"], Unread)
    assert "builtins.getattr, mmengine.logging.history_buffer.HistoryBuffer" in caplog.text


def named(module, name):
    return f"c{module}\n{name}\n".encode()


def text(value):
    return b"X" + struct.pack("<I", len(str(value))) + str(value).encode()


def attacks(mark):
    """Pickles that make the folder ``mark``, or take memory or time without end, by opcode."""
    mkdir, argument = named("os", "mkdir"), text(mark)
    size, rebuild = struct.pack("<Q", 1 << 45), named("torch._utils", "_rebuild_tensor_v2")
    doubled = b"N" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60)) + b"q\xff"
    nested = b"N."
    for _ in range(40):
        called = named("torch.storage", "_load_from_bytes") + b"h\x01\x85R"
        nested = b"B" + struct.pack("<I", len(nested)) + nested + b"q\x01" + called * 4 + b"."
    copied = b"B" + struct.pack("<I", 1 << 20) + bytes(1 << 20) + b"q\x01"
    return {
        "REDUCE": mkdir + argument + b"\x85R.",
        "STACK_GLOBAL": text("os") + text("mkdir") + b"\x93" + argument + b"\x85R.",
        "a path in a name": text("torch") + text("os.mkdir") + b"\x93" + argument + b"\x85R.",
        "INST": b"(" + argument + b"ios\nmkdir\n.",
        "OBJ": b"(" + mkdir + argument + b"o.",
        "NEWOBJ": mkdir + argument + b"\x85\x81.",
        "NEWOBJ_EX": mkdir + argument + b"\x85}\x92.",
        "EXT1": b"\x82\x01" + argument + b"\x85R.",
        "PERSID": b"Pos.mkdir\n.",
        "BINPERSID": b"(" + text("storage") + mkdir + argument + text("cpu") + b"K\x01tQ.",
        "BUILD": rebuild + b"}" + text("__code__") + mkdir + b"sb" + argument + b"\x85R.",
        "BUILD slots": rebuild + b"N}" + text("make") + mkdir + b"s\x86b" + argument + b"\x85R.",
        "BUILD a stand-in": mkdir + b")R}" + text("append") + mkdir + b"sb" + argument + b"a.",
        "a result": named("builtins", "getattr") + mkdir + b"\x85R" + argument + b"\x85R.",
        "a subclass": named("torch._tensor", "_rebuild_from_type_v2")
        + b"(" + mkdir + b"N" + argument + b"\x85}tR.",
        "BYTEARRAY8": b"\x96" + size + b".",
        "BINBYTES8": b"\x8e" + size + b".",
        "FRAME": b"\x95" + size + b"N.",
        "LONG_BINPUT": b"Nr\xff\xff\xff\xff.",
        "a size": named("builtins", "bytearray") + b"J\xff\xff\xff\x7f\x85R.",
        "copies": copied + b"]" + (named("builtins", "bytearray") + b"h\x01\x85Ra") * 9999 + b".",
        "a key": doubled + b"}h\xffNs.",
        "an element": doubled + b"\x8f(h\xff\x90.",
        "pickles in pickles": nested,
        "nested": b"]" * 9999 + b"a" * 9998 + b".",
    }  # fmt: skip


@pytest.mark.parametrize("name", attacks(""))
@pytest.mark.parametrize("form", ["pickle", "zip", "torch before 1.6"])
def test_no_opcode_executes_anything(tmp_path, name, form):
    mark, file = tmp_path / "made", tmp_path / "file.pth"
    pickled = b"\x80\x05" + attacks(mark)[name]
    if form == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("file/data.pkl", pickled)
    else:
        magic = [pickle.dumps(value) for value in (0x1950A86A20F9469CFC6C, 1001, {})]
        parts = [pickled] if form == "pickle" else [*magic, pickled, pickle.dumps([])]
        file.write_bytes(b"".join(parts))
    try:
        read_checkpoint(file)
    except CheckpointError as error:
        assert str(error).startswith(f"{file} cannot be read (")
    assert not mark.exists()


def test_what_it_calls_stays_as_it_is(tmp_path):
    """A pickle can set attributes of what it names; here those are of no use to it."""
    rebuild = torch._utils._rebuild_tensor_v2
    before = dict(vars(rebuild)), rebuild.__defaults__
    pickled = (
        named("torch._utils", "_rebuild_tensor_v2") + b"N}" + text("__defaults__") + b"Ns\x86b."
    )
    (tmp_path / "file.pkl").write_bytes(b"\x80\x02" + pickled)
    read_checkpoint(tmp_path / "file.pkl")
    assert (dict(vars(rebuild)), rebuild.__defaults__) == before


class Program:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("is_zip", [True, False])
def test_what_is_around_an_object_is_read(tmp_path, is_zip):
    marks = [str(tmp_path / name) for name in "ab"]
    parameter = nn.Parameter(torch.ones(2))
    parameter.note = Program(os.mkdir, (marks[0],))
    objects = np.array([Program(os.mkdir, (marks[1],)), "text"], dtype=object)
    content = {"x": parameter, "y": objects, "z": nn.Linear(2, 2), "w": {"v": np.array(["text"])}}
    torch.save(content, tmp_path / "file.pth", _use_new_zipfile_serialization=is_zip)
    found = read_checkpoint(tmp_path / "file.pth")
    assert torch.equal(found["x"], parameter)
    assert found["y"].size == found["w"]["v"].size == 0
    assert repr(found["z"]) == "a torch.nn.modules.linear.Linear, which is not read"
    assert not any(map(os.path.exists, marks))


def test_a_folder_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"is a folder\. Name a file in it"):
        read_checkpoint(tmp_path)
