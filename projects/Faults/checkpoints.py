"""Checkpoints that are damaged, hostile or of something else, loaded into a model."""

import functools
import io
import os
import pickle
import random
import signal
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from trials import damage, trials, unmade

from gnws_d2.checkpoint import Checkpointer, read_checkpoint, write_checkpoint
from gnws_d2.checkpoint.convert import convert_file
from gnws_d2.layers import WSConv2d


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(WSConv2d(3, 32, 3), nn.GroupNorm(32, 32), nn.Conv2d(32, 8, 1))


def good() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {name: torch.randn_like(t) for name, t in build().state_dict().items()}


@functools.cache
def saved() -> bytes:
    stream = io.BytesIO()
    content = {"model": good(), "iteration": 7, "optimizer": {"state": {}, "param_groups": []}}
    torch.save(content, stream)
    return stream.getvalue()


def load(file: Path) -> str:
    """Load, and compare with the good tensors."""
    built = build()
    Checkpointer(built).load(str(file))
    state, expected = built.state_dict(), good()
    wrong = [name for name in expected if not torch.equal(state[name], expected[name])]
    return f"{wrong[0]} differs from what was saved" if wrong else ""


@trials(200, "damaged bytes")
def damaged(rng: random.Random, folder: Path) -> str:
    """Bits and bytes changed, removed, added, or the end cut off."""
    file = folder / "model.pth"
    file.write_bytes(damage(rng, saved(), (rng.randbytes(1), rng.randbytes(100))))
    return load(file)


@trials(100, "programs")
def program(rng: random.Random, folder: Path) -> str:
    """A program in a pickle, in any form that torch has had, at any place in the file."""
    made = str(folder / "made")
    calls = (
        *((os.mkdir, made), (os.system, f"mkdir '{made}'"), (torch.load, made)),
        *((exec, f"import os; os.mkdir({made!r})"), (eval, f"__import__('os').mkdir({made!r})")),
    )
    function, argument = rng.choice(calls)  # called when it is unpickled
    hidden = type("", (), {"__reduce__": lambda _: (function, (argument,))})()
    tensor = nn.Parameter(good()["2.bias"])
    tensor.hidden = hidden  # type: ignore[attr-defined]
    contents = (
        *({"model": {**good(), "2.bias": hidden}}, {"model": {**good(), "2.bias": tensor}}),
        *({"model": good(), "optimizer": [hidden]}, {"model": hidden}, hidden),
        {"model": good(), rng.choice(("gnws_d2", "matching_heuristics", "x")): hidden},
    )
    content: Any = rng.choice(contents)
    file = folder / rng.choice(("model.pth", "model.pth", "model.pkl", "model.pyth", "model"))
    with file.open("wb") as stream:
        if rng.random() < 0.3:
            pickle.dump(content, stream, protocol=rng.randrange(6))
        else:
            torch.save(content, stream, _use_new_zipfile_serialization=rng.random() < 0.7)
    query = rng.choice(("", "", "?matching_heuristics=True"))
    with unmade(folder / "made"):
        if rng.random() < 0.3:
            convert_file(file, folder / "new.pth", rng.choice(("detectron2", "mmdet")))
        else:
            Checkpointer(build()).load(f"{file}{query}")
    return ""


@trials(400, "opcodes")
def opcodes(rng: random.Random, folder: Path) -> str:
    """A pickle whose opcodes, in a random order, name functions, call and change them."""
    made = str(folder / "made").encode()
    names = ((b"os", b"mkdir"), (b"posix", b"mkdir"), (b"builtins", b"getattr"), (b"os", b"system"))
    known = ((b"torch._utils", b"_rebuild_tensor_v2"), (b"collections", b"OrderedDict"))
    known += ((b"torch._tensor", b"_rebuild_from_type_v2"), (b"numpy", b"dtype"))
    pieces = [
        *(b"c%b\n%b\n" % name for name in (*names, *names, *known)),
        *(b"\x8c%c%b\x8c%c%b\x93" % (len(a), a, len(b), b) for a, b in (*names, *known)),
        *[b"X" + struct.pack("<I", len(made)) + made + end for end in (b"", b"\x85R", b"\x85\x81")],
        *(b"(i%b\n%b\n" % name for name in names),
        *(b"%c" % code for code in b"R\x81ob(tldeusa}])\x85\x86\x87N02Q\x8f"),
        *(b"\x85R", b"}\x92", b"K\x01", b"\x90", b"\x91", b"\x82\x01", b"Pos.mkdir\n"),
        *(b"q\x01", b"h\x01", b"r\xff\xff\xff\xff"),
    ]
    pickled = b"\x80\x05" + b"".join(rng.choices(pieces, k=rng.randrange(2, 40))) + b"."
    file = folder / rng.choice(("model.pth", "model.pkl"))
    if rng.random() < 0.5:
        file.write_bytes(pickled)
    else:
        with zipfile.ZipFile(file, "w") as target:
            target.writestr("model/data.pkl", pickled)
    with unmade(folder / "made"):
        read_checkpoint(file)
    return ""


@trials(120, "tensors")
def tensors(rng: random.Random, folder: Path) -> str:
    """Tensors missing, left over, of another shape or type, not finite, or not tensors at all."""
    model = good()
    name = rng.choice(sorted(model))
    tensor = model[name]
    holed = tensor.clone()
    holed.view(-1)[rng.randrange(tensor.numel())] = rng.choice((float("nan"), float("inf")))
    others: tuple[Any, ...] = (
        *(holed, tensor.to(torch.complex64), tensor.to(torch.int32), tensor > 0, tensor[:1]),
        *(tensor.unsqueeze(0), tensor.to_sparse(), torch.zeros(1).expand(10**6, 10**6)),
        *(tensor.to("meta"), None, 1.0, "x", [1.0], {"a": tensor}, tensor.flatten()[:0]),
        torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
    )
    contents: tuple[Any, ...] = (
        {n: t for n, t in model.items() if n != name},
        {**model, rng.choice(("more", "module." + name, name.upper(), "0.weights")): tensor},
        *({**model, name: rng.choice(others)}, {**model, name: rng.choice(others)}),
        rng.choice((None, [], {}, 1, "x", list(model.items()), {1: tensor}, tensor)),
    )
    top = rng.choice(({}, {"matching_heuristics": True}, {"gnws_d2": 1}, {"__author__": "x"}))
    torch.save({"model": rng.choice(contents), **top}, folder / "model.pth")
    return load(folder / "model.pth")


@trials(60, "archives")
def archive(rng: random.Random, folder: Path) -> str:
    """The zip archive of a checkpoint with a record repeated, empty, cut, or a bomb."""
    file = folder / "model.pth"
    how = rng.choice(("removed", "empty", "cut", "moved", "repeated", "bomb"))
    with zipfile.ZipFile(io.BytesIO(saved())) as source, zipfile.ZipFile(file, "w") as target:
        chosen = rng.choice(source.namelist())
        for name in source.namelist():
            data = source.read(name)
            if name != chosen:
                target.writestr(name, data)
            elif how == "bomb":
                target.writestr(name, bytes(16 << 20), compress_type=zipfile.ZIP_DEFLATED)
            elif how != "removed":
                if how == "repeated":
                    target.writestr(name, b"first")
                kept = {"empty": 0, "cut": len(data) // 2}.get(how, len(data))
                target.writestr(f"../{name}" if how == "moved" else name, data[:kept])
    return load(file)


@trials(40, "other files")
def other(rng: random.Random, folder: Path) -> str:
    """Files that are no checkpoint."""
    file = folder / "model.pth"
    texts = (b"", b"x", b"<html>", b"{}", b"[]", b"PK", b"version https://git-lfs")
    make: tuple[Callable[[], Any], ...] = (
        lambda: file.write_bytes(rng.choice((*texts, rng.randbytes(10_000)))),
        lambda: torch.save(rng.choice((None, [], 1, good()["2.bias"])), file),
        *(file.mkdir, lambda: file.symlink_to(folder / "none.pth")),
    )
    rng.choice(make)()
    load(file)
    return "accepted"


@trials(100, "killed while written")
def killed(rng: random.Random, folder: Path) -> str:
    """A process is killed while it writes the file: that is whole, and the next write a day later
    leaves nothing of the killed process."""
    file = folder / "model.pth"
    size = rng.choice((10, 100_000, 1_000_000))
    child = os.fork()
    if child == 0:
        for number in range(1 << 20):
            write_checkpoint({"model": torch.full((size,), number)}, file)
        os._exit(0)
    while not file.exists():
        time.sleep(0.001)
    time.sleep(rng.uniform(0.0, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = read_checkpoint(file)["model"]
    if len(found) != size or (found != found[0]).any():
        return "the file is neither the old nor the new one"
    for left in folder.glob(".*"):
        os.utime(left, (0, 0))
    write_checkpoint({}, file)
    left = sorted(f.name for f in folder.iterdir())
    return "" if left == ["model.pth"] else f"left: {left}"
