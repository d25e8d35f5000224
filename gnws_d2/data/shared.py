"""A training set that the processes of a machine have in memory once."""

import logging
import pickle
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from detectron2.utils import comm

logger = logging.getLogger(__name__)

Records = Sequence[dict[str, Any]]


def load_once(load: Callable[[], Any]) -> Any:
    """``load()``; a list that the first process of a machine loads is shared with its others.

    All processes call this. Each of them would hold the annotations of COCO in some GiB.
    """
    if comm.get_world_size() == 1 or comm._LOCAL_PROCESS_GROUP is None:
        return load()
    is_first = comm.get_local_rank() == 0
    loaded = load() if is_first else None
    is_list = isinstance(loaded, list)
    # In a file, as a machine may be given little shared memory; it has no name any more at the end.
    with tempfile.NamedTemporaryFile(buffering=0) as file:
        try:
            ends = _write(loaded or [], file) if is_list else None
        except OSError as error:  # each process then has its own
            logger.warning("The training set is not shared (%s). Make room, or set TMPDIR.", error)
            ends = None
        told = comm.all_gather((file.name, ends))[comm.get_rank() - comm.get_local_rank()]
        shared = SharedRecords(*told) if told[1] is not None else None
        comm.synchronize()
    if shared is None:
        return loaded if is_first else load()
    return shared


def _write(records: list[dict[str, Any]], file: Any) -> np.ndarray:
    """Where each ends."""
    sizes = []
    for record in records:
        data = pickle.dumps(record, -1)
        sizes.append(len(data))
        while data:  # a full disk takes a part, and then raises
            data = data[file.write(data) :]
    return np.cumsum(sizes)


class SharedRecords(Records):
    """Dicts in Detectron2's dataset format in a file, which stays in memory; each access makes a
    new dict.

    Args:
        file: their pickles, of this program, one behind the other.
        ends: (N,), where each ends.
    """

    def __init__(self, file: str, ends: np.ndarray) -> None:
        self._bytes = np.memmap(file, np.uint8, "r", shape=(int(ends[-1]),))
        self._ends = ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        start = self._ends[index - 1] if index else 0
        return pickle.loads(self._bytes[start : self._ends[index]].data)
