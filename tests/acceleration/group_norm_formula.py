"""GroupNorm + ReLU by its definition, whose gradients autograd finds."""

import torch

EPS = 1e-5
FORMATS = [torch.contiguous_format, torch.channels_last]


def formula(x, weight, bias, residual, num_groups):
    groups = x.reshape(x.shape[0], num_groups, x.shape[1:].numel() // num_groups)
    centered = groups - groups.mean(2, keepdim=True)
    deviation = (centered.square().mean(2, keepdim=True) + EPS).sqrt()
    per_channel = (-1,) + (1,) * (x.dim() - 2)
    y = (centered / deviation).view(x.shape) * weight.view(per_channel) + bias.view(per_channel)
    return (y if residual is None else y + residual).relu()
