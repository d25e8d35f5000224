"""GroupNorm, an optional addition, and ReLU as one operation with its own gradient.

Unfused, with ReLU in place, they read or write the whole tensor 13 times in a training step;
Triton's kernels do it 8 times. Backward keeps the input and the statistics, and finds from them
where ReLU was positive. The formula is that of Wu and He, "Group Normalization" (arXiv 1803.08494).
"""

from typing import Any

import torch
from torch import nn

from .kernels import kernels_for, torch_kernels
from .recompute import attach_recipe


def group_norm_relu(
    x: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float = 1e-5,
    residual: torch.Tensor | None = None,
    *,
    recompute: bool = False,
) -> torch.Tensor:
    """``relu(group_norm(x) + residual)``.

    Statistics are computed in float32, or in float64 for float64. Autocast changes nothing: half
    precision goes in and comes out, whereas autocast on CUDA makes ``F.group_norm`` compute and
    return float32. The same input gives the same bits. Triton's kernels run on large inputs on a
    GPU, torch's elsewhere, see :mod:`.kernels`.

    Args:
        x: ``(N, C, *)``, floating; N may be 0.
        num_groups: a divisor of C.
        weight, bias: (C,).
        eps: added to the (biased) variance of a group.
        residual: of the shape of ``x``.
        recompute: see :mod:`.recompute`; without effect where a residual is added.

    Returns:
        A tensor of the shape, dtype and memory format of ``x``.

    Raises:
        ValueError: shapes or devices that do not fit.
    """
    if x.dim() < 2 or x.shape[1] % num_groups:
        raise ValueError(
            f"group_norm_relu takes (N, C, *) with C a multiple of num_groups, {num_groups}, "
            f"but x is {tuple(x.shape)}."
        )
    others = {"weight": (weight, x.shape[1:2]), "bias": (bias, x.shape[1:2])}
    if residual is not None:
        others["residual"] = residual, x.shape
    for name, (other, shape) in others.items():
        if other.shape != shape or other.device != x.device:
            raise ValueError(
                f"group_norm_relu takes a {name} of shape {tuple(shape)} on {x.device}, as x, "
                f"but it is {tuple(other.shape)} on {other.device}."
            )
    eager = type(x) is torch.Tensor and not torch.compiler.is_compiling()
    if eager and not torch.is_grad_enabled():
        # Bypasses the dispatcher, which takes longer than the kernels of a small input.
        return kernels_for(x).forward(x, weight, bias, residual, num_groups, eps)[0]
    y, mean, rstd = _group_norm_relu(x, weight, bias, residual, num_groups, eps)
    if recompute and eager and residual is None and y.requires_grad:
        attach_recipe(y, kernels_for(x).normalize, (x, weight, bias, mean, rstd), eps)
    return y


class GroupNormReLU(nn.GroupNorm):
    """``torch.nn.GroupNorm``, an optional addition, and ReLU. Parameters and their names are those
    of ``GroupNorm``. A trace or an exported program contains the separate operations.

    Attributes:
        recompute: see :mod:`.recompute`.
    """

    # On the class, so that a GroupNorm turned into this class in place has it, too.
    recompute: bool = False

    def forward(self, input: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        parameters = (self.num_groups, self.weight, self.bias, self.eps)
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            y = torch.group_norm(input, *parameters)
            return (y if residual is None else y + residual).relu()
        return group_norm_relu(input, *parameters, residual, recompute=self.recompute)


_group_norm_relu = torch.library.custom_op(
    "gnws_d2::group_norm_relu",
    lambda x, *others: kernels_for(x).forward(x, *others),
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor bias, Tensor? residual, int num_groups, float eps)"
    " -> (Tensor, Tensor, Tensor)",
)
_group_norm_relu_backward = torch.library.custom_op(
    "gnws_d2::group_norm_relu_backward",
    lambda grad, x, *others: kernels_for(x).backward(grad, x, *others),
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor weight, Tensor bias, Tensor? y, Tensor mean, "
    "Tensor rstd, float eps) -> (Tensor, Tensor, Tensor, Tensor)",
)
# Torch's kernels, on tensors without data, tell a compiler the shapes, types and memory formats.
_group_norm_relu.register_fake(torch_kernels.forward)
_group_norm_relu_backward.register_fake(torch_kernels.backward)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    x, weight, bias, residual, _, ctx.eps = inputs
    y, mean, rstd = output
    # With a residual, the result tells where ReLU was positive. Keeping it takes no memory: the
    # convolution after a residual block keeps it as its input.
    ctx.save_for_backward(x, weight, bias, mean, rstd, None if residual is None else y)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: torch.Tensor | None, *_: object) -> tuple[Any, ...]:
    x, weight, bias, mean, rstd, y = ctx.saved_tensors
    if grad is None:
        return (None,) * 6
    grads = _group_norm_relu_backward(grad, x, weight, bias, y, mean, rstd, ctx.eps)
    return *grads[:3], grads[3] if y is not None else None, None, None


_group_norm_relu.register_autograd(_differentiate, setup_context=_save)
