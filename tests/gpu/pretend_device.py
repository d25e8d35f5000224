"""A pretend accelerator: CPU data behind a device of its own name, "pretend".

Tensors of several devices are refused as CUDA refuses them; operators are counted, and where the
host would wait for the device. On torch's experimental Python backends: torch takes a registered
one for the machine's accelerator, so it needs a process of its own. Not as CUDA: autocast and the
choice of layouts (test_fake_cuda.py has both), kernels that the CPU lacks, and is_cuda.
"""

import sys
from collections import Counter

import torch
from torch.optim.optimizer import _foreach_supported_types
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

NAME, COPY, TO_COPY = "pretend", torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default
# The host needs a value, or a size to allocate.
WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique2",
    "equal",
    "nms",
    "bincount",
}
NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
NO_KERNEL |= {"_unsafe_view", "detach", "lift_fresh"}
_LIBRARY = torch.library.Library("aten", "IMPL")


class Pretend(torch.Tensor):
    """A tensor of the device; ``on_cpu`` has its data."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, on_cpu):
        how = {"strides": on_cpu.stride(), "storage_offset": on_cpu.storage_offset()}
        how |= {"dtype": on_cpu.dtype, "device": f"{NAME}:0"}
        tensor = cls._make_wrapper_subclass(cls, on_cpu.shape, **how)
        tensor.on_cpu = on_cpu
        return tensor

    def tolist(self):
        return self.cpu().tolist()

    def __reduce_ex__(self, protocol):
        return self.cpu().__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return Device.now.__torch_dispatch__(func, types, args, kwargs)


class Device(TorchDispatchMode):
    """``with Device() as device:`` has the device, in one ``with`` at a time. ``calls`` counts
    operators, without views and allocations; ``waits``, by operator and line, where the host waits:
    for values and sizes, and for copies from or to the device that are not ``non_blocking``."""

    def __init__(self):
        super().__init__()
        self.calls, self.waits = Counter(), Counter()
        Device.now = self

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        own = [tensor for tensor in tensors if isinstance(tensor, Pretend)]
        other = [tensor for tensor in tensors if not isinstance(tensor, Pretend)]
        name, device = func._schema.name.partition("::")[2], kwargs.get("device")
        to_own = bool(own) if device is None else torch.device(device).type == NAME
        is_across = bool(own and other) if func is COPY else bool(own) != to_own
        if own and other:
            _refuse_mixed(func, name, args, other)
        if own or to_own:
            if not func.is_view and name not in NO_KERNEL:
                self.calls[name] += 1
            is_copy = func in (COPY, TO_COPY) and not kwargs.get("non_blocking")
            if name in WAITING or (is_copy and is_across) or _has_mask(name, args):
                self.waits[f"{name} {_place()}"] += 1
        plain = tree_map_only(Pretend, lambda tensor: tensor.on_cpu, (args, kwargs))
        found = func(*plain[0], **plain[1] | ({} if device is None else {"device": "cpu"}))
        if not to_own or (func is COPY and not isinstance(args[0], Pretend)):
            return found
        found = tree_map_only(torch.Tensor, Pretend, found)
        return return_and_correct_aliasing(func, args, kwargs, found) if own else found


def _has_mask(name, args):
    """Whether an index is a mask. To set one value where a mask is true takes no size."""
    is_index = name == "index" or (name.startswith("index_put") and args[2].numel() > 1)
    return is_index and any(t is not None and t.dtype is torch.bool for t in args[1])


def _refuse_mixed(func, name, args, other):
    """Raise where CUDA would, which takes numbers, copies and indices of another device."""
    if func in (COPY, TO_COPY):
        return
    is_fine = torch.Tag.pointwise in func.tags and not any(t.dim() for t in other)
    if name.startswith("index") and isinstance(args[0], Pretend):
        is_fine = not any(tensor is args[-1] and tensor.dim() for tensor in other)
    if not is_fine:
        raise RuntimeError(f"{func} takes tensors of two devices, {NAME} and cpu")


def _place():
    """The line that made the call."""
    frame = sys._getframe(2)
    while frame:
        for name in ("gnws_d2", "projects", "detectron2", "torchvision"):
            if f"/{name}/" in (file := frame.f_code.co_filename):
                return f"{name}/{file.rpartition(f'/{name}/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return "backward"


def _empty(size, stride, dtype=None, **_):
    return Pretend(torch.empty_strided(size, stride, dtype=dtype))


def _copy(source, target, non_blocking=False):
    Device.now.waits[f"tensor {_place()}"] += 1
    target.on_cpu.copy_(source)
    return target


class _Module(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self):
        return [torch.float16, torch.bfloat16]


def register():
    """Let torch know the device."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    _foreach_supported_types.append(Pretend)  # as of CUDA, in optimizers
    # torch.tensor and lists as indices go past all modes.
    _LIBRARY.impl("empty_strided", _empty, "PrivateUse1")
    _LIBRARY.impl("_copy_from", _copy, "PrivateUse1")
