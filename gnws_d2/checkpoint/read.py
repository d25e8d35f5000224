"""Checkpoint files of torch, as tensors and plain values: nothing in a file is executed.

A pickle is a program for a small machine, which can call whatever Python can import. Here it can
call the constructors in :data:`_CONSTRUCTORS`, no others; whatever else it names or builds becomes
an :class:`Unread`. Sources: PEP 3154 and pickletools (the opcodes), ``torch/serialization.py`` (the
two formats of ``torch.save``), ``numpy/_core/src/multiarray/methods.c`` (arrays).
"""

import io
import logging
import math
import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from ..errors import CheckpointError, shorten

logger = logging.getLogger(__name__)

_MAGIC = 0x1950A86A20F9469CFC6C  # the first value in a file of torch before 1.6
# Bytes that a tensor may have beyond those in the file: expanded ones are usual.
_EXPANDED = 1 << 28
_KEYS = (str, int, float, bytes, type(None))  # whose hash takes no time, whatever the file does


class Unread:
    """In place of an object that is neither a tensor nor a plain value; it has no behavior."""

    def __init__(self, name: str) -> None:
        self.name = name  # of its class or function, with the module

    def __repr__(self) -> str:
        return f"a {self.name}, which is not read"

    def append(self, _: object) -> None:  # it may have been a list
        pass

    extend = append


@dataclass(frozen=True)
class _Constructor:
    make: Callable[..., Any]


def read_checkpoint(file: str | Path) -> Any:
    """What ``torch.save`` or ``pickle.dump`` wrote to a file, on the CPU: tensors, arrays, numbers,
    text, containers of these (sets as lists), and :class:`Unread`, which the log names.

    Raises:
        CheckpointError: it is missing, damaged, or no such file.
    """
    try:
        unread: set[str] = set()
        if zipfile.is_zipfile(file):
            found = _read_archive(file, unread)
        else:
            with open(file, "rb") as stream:
                size = os.path.getsize(file)
                found = _read_stream(stream, size, unread, _copies_of(size))
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} does not exist. Correct its path.") from error
    except IsADirectoryError as error:
        raise CheckpointError(f"{file} is a folder. Name a file in it.") from error
    except Exception as error:  # a damaged pickle fails in any of many ways
        reason = shorten(f"{type(error).__name__}: {error}", quote=False)
        raise CheckpointError(
            f"{file} cannot be read ({reason}): it is damaged, cut off, or not a checkpoint. Fetch "
            "it again, or name another in MODEL.WEIGHTS; to resume, name an earlier checkpoint of "
            "the run in OUTPUT_DIR/last_checkpoint."
        ) from error
    if unread:
        logger.info("Not read of %s: %s", file, shorten(", ".join(sorted(unread)), quote=False))
    return found


def _read_archive(file: str | Path, unread: set[str]) -> Any:
    """A zip archive: a pickle, and each storage as a record. Reading a record compares its
    CRC-32."""
    storages: dict[str, torch.Tensor] = {}
    with zipfile.ZipFile(file) as archive:
        records = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if len(records) < len(archive.infolist()):
            raise zipfile.BadZipFile("a record is there twice")

        def read(name: str) -> bytearray:
            size = records[name].file_size
            if records[name].compress_type != zipfile.ZIP_STORED or size > os.path.getsize(file):
                raise zipfile.BadZipFile(f"{name} is compressed, which torch.save does not do")
            return bytearray(archive.read(records[name]))

        def storage(dtype: torch.dtype, key: str, count: int, *_: None) -> torch.Tensor:
            if key not in storages:
                storages[key] = _as_storage(read(f"data/{key}"), dtype, count)
            return storages[key]

        if "byteorder" in records and read("byteorder").decode() != sys.byteorder:
            raise ValueError("it was written on a machine with another order of bytes")
        content = read("data.pkl")
        copies = _copies_of(len(content))
        return _Unpickler(io.BytesIO(content), unread, copies, storage).load()


def _read_stream(stream: IO[bytes], size: int, unread: set[str], copies: list[int]) -> Any:
    """A pickle of ``size`` bytes; or several, which describe the storages behind them, of torch
    before 1.6, and of a tensor's storage in a pickle that torch did not write."""
    contents: dict[str, bytearray] = {}
    storages: dict[str, torch.Tensor] = {}
    left = size  # bytes for further tensors

    def storage(dtype: torch.dtype, key: str, count: int, view: Any = None) -> torch.Tensor:
        nonlocal left
        if key not in storages:
            left -= count * dtype.itemsize
            if left < 0:
                raise EOFError("its tensors are larger than the file")
            contents[key] = bytearray(count * dtype.itemsize)  # filled below
            storages[key] = _as_storage(contents[key], dtype, count)
        return storages[key] if view is None else storages[key][view[1] : view[1] + view[2]]

    def load() -> Any:
        return _Unpickler(stream, unread, copies, storage).load()

    found = load()
    if not isinstance(found, int) or found != _MAGIC:
        return found
    _, _, found, keys = (load() for _ in ("version", "machine", "content", "keys"))
    if sorted(keys) != sorted(contents):
        raise EOFError("it does not hold the tensors that it describes")
    for key in keys:
        count, content = int.from_bytes(stream.read(8), "little"), contents[key]
        found_bytes = stream.read(len(content))
        if count != storages[key].numel() or len(found_bytes) < len(content):
            raise EOFError(f"storage {key} is cut off")
        content[:] = found_bytes  # in place: the tensors share it
    return found


def _copies_of(size: int) -> list[int]:
    """How many values may still be copied, in one place for all pickles of a file. A file names a
    value as often as it likes, but it has no reason to copy it."""
    return [4 * size + 65536]


def _as_storage(content: bytearray, dtype: torch.dtype, count: int) -> torch.Tensor:
    if count * dtype.itemsize != len(content):
        raise ValueError(f"a storage has {len(content)} bytes instead of {count} values")
    return torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)


def _tensor(storage: torch.Tensor, offset: int, size: Any, stride: Any, *_: Any) -> torch.Tensor:
    if math.prod(size) * storage.itemsize > max(storage.nbytes, _EXPANDED):
        raise ValueError(f"a tensor of shape {tuple(size)} without its content")
    return storage.as_strided(size, stride, offset)


def _dtype(code: Any, *_: Any) -> np.dtype | Unread:
    dtype = np.dtype(code if isinstance(code, str) else "O", copy=True)  # BUILD changes it
    return dtype if dtype.kind in "biufc" and not dtype.names else Unread(f"array of {dtype}")


def _bytes(content: Any = b"", *_: Any) -> bytes:
    # Text is how Python 2, and protocols 0 to 2, write bytes. A number would be a size.
    return content.encode("latin1") if isinstance(content, str) else bytes(memoryview(content))


def _array(content: Any, dtype: Any, shape: Any, order: Any = "C") -> Any:
    if isinstance(dtype, Unread):
        return dtype
    array = np.frombuffer(bytearray(_bytes(content)), dtype).reshape(shape, order=order)
    return array.astype(dtype.newbyteorder("="), copy=False)  # as torch needs it


def _scalar(dtype: Any, content: Any) -> Any:
    return dtype if isinstance(dtype, Unread) else _array(content, dtype, ())[()].item()


def _mapping(pairs: Any = ()) -> OrderedDict[Any, Any]:
    return OrderedDict((key, value) for key, value in pairs if isinstance(key, _KEYS))


def _pairs(items: list[Any]) -> dict[Any, Any]:
    """Keys and values in turn as a dict, without those whose key could take long to hash."""
    return dict(_mapping(zip(items[::2], items[1::2], strict=True)))


_CONSTRUCTORS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": lambda *_: {},
    "builtins.set": list,
    "builtins.frozenset": list,
    "builtins.complex": complex,
    "builtins.bytes": _bytes,
    "builtins.bytearray": lambda *content: bytearray(_bytes(*content)),
    "_codecs.encode": _bytes,
    "torch.Size": tuple,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": lambda storage, offset, size, stride, _, __, dtype, *___: (
        _tensor(storage.view(dtype), offset, size, stride)
    ),
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "numpy.dtype": _dtype,
    "numpy.core.multiarray._reconstruct": lambda *_: np.empty(0),
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _array,
}


_PythonUnpickler: Any = pickle._Unpickler


class _Unpickler(_PythonUnpickler):
    """The unpickler in Python, whose opcodes can be replaced: those that call or change objects
    act on what this file knows, and on nothing else.

    Args:
        stream: where the pickle begins.
        unread: gets the names of what becomes :class:`Unread`.
        copies: see :func:`_copies_of`.
        storage: gives the values of a tensor, 1-d, by dtype, key and number of values.
    """

    def __init__(
        self,
        stream: IO[bytes],
        unread: set[str],
        copies: list[int],
        storage: Callable[..., torch.Tensor],
    ) -> None:
        super().__init__(stream, encoding="latin1")  # for Python 2, as Detectron2 reads its files
        self._unread, self._copies, self._storage = unread, copies, storage

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("__builtin__", "builtins").replace("numpy._core", "numpy.core")
        full = f"{module}.{name}"
        if full in _CONSTRUCTORS:
            return _Constructor(_CONSTRUCTORS[full])
        if full == "torch._tensor._rebuild_from_type_v2":  # a tensor with attributes
            return _Constructor(lambda made, _, arguments, *__: self._made(made, arguments))
        if full == "torch.storage._load_from_bytes":
            return _Constructor(self._nested)
        of_torch = vars(torch).get(name)
        if module in ("torch", "torch.storage") and name.endswith("Storage"):
            return getattr(of_torch, "_dtype", torch.uint8)  # UntypedStorage has none
        if module == "torch" and isinstance(of_torch, torch.dtype):
            return of_torch
        if full != "numpy.ndarray":  # an argument of its constructor
            self._unread.add(full)
        return Unread(full)

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "module":  # a class, before its source, before torch 1.6
            return pid[1]
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or count < 0:
            raise pickle.UnpicklingError(f"it refers to a {kind}")
        return self._storage(dtype, key, count, *view)

    def _made(self, what: Any, arguments: Any) -> Any:
        """What calling ``what``, which the pickle has named, gives."""
        if isinstance(what, Unread):
            return Unread(what.name)
        if not isinstance(what, _Constructor):
            raise pickle.UnpicklingError(f"it calls a {type(what).__name__}")
        for argument in arguments:
            self._count(argument)
        return what.make(*arguments)

    def _nested(self, content: bytes) -> Any:
        return _read_stream(io.BytesIO(content), len(content), self._unread, self._copies)

    def _count(self, copied: Any) -> None:
        size = 0 if isinstance(copied, torch.Tensor) else getattr(copied, "__len__", int)()
        self._copies[0] -= size
        if self._copies[0] < 0:
            raise pickle.UnpicklingError("it copies more than it holds")

    def _instantiate(self, what: Any, arguments: Any) -> None:  # INST and OBJ
        self.append(self._made(what, arguments))

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self._made(self.stack[-1], arguments)

    def load_newobj_ex(self) -> None:
        self.stack.pop()  # no constructor takes keywords
        self.load_reduce()

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, np.ndarray):
            _, shape, dtype, is_fortran, content = state
            self._count(content)
            filled = _array(content, dtype, shape, "F" if is_fortran else "C")
            if isinstance(filled, Unread):  # objects, or text
                self._unread.add(filled.name)
            else:
                content = filled.tobytes("A")
                target.__setstate__((1, filled.shape, filled.dtype, is_fortran, content))
        elif isinstance(target, np.dtype):
            order = state[1] if state[1] in ("<", ">") else "|"
            target.__setstate__((3, order, None, None, None, -1, -1, 0))  # type: ignore[attr-defined]
        elif isinstance(target, OrderedDict) and isinstance(state, dict):
            metadata = state.get("_metadata")  # of a module's state dict: versions
            if isinstance(metadata, dict) and all(isinstance(v, dict) for v in metadata.values()):
                target._metadata = metadata  # type: ignore[attr-defined]

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append(_pairs(items))

    def load_setitems(self) -> None:
        items = self.pop_mark()
        if isinstance(self.stack[-1], dict):
            self.stack[-1].update(_pairs(items))

    def load_setitem(self) -> None:
        items = [self.stack.pop(-2), self.stack.pop()]
        if isinstance(self.stack[-1], dict):
            self.stack[-1].update(_pairs(items))

    def load_bytearray8(self) -> None:
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))

    dispatch = dict(_PythonUnpickler.dispatch)
    for opcode in (pickle.EXT1, pickle.EXT2, pickle.EXT4):  # names that this process registered
        del dispatch[opcode[0]]
    dispatch |= {
        **{pickle.REDUCE[0]: load_reduce, pickle.NEWOBJ[0]: load_reduce},
        **{pickle.NEWOBJ_EX[0]: load_newobj_ex, pickle.BUILD[0]: load_build},
        **{pickle.DICT[0]: load_dict, pickle.SETITEM[0]: load_setitem},
        **{pickle.SETITEMS[0]: load_setitems, pickle.BYTEARRAY8[0]: load_bytearray8},
        # Sets are lists: nothing is hashed.
        **{pickle.EMPTY_SET[0]: dispatch[pickle.EMPTY_LIST[0]]},
        **{pickle.ADDITEMS[0]: dispatch[pickle.APPENDS[0]]},
        **{pickle.FROZENSET[0]: dispatch[pickle.LIST[0]]},
    }
