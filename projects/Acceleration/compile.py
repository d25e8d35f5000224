"""``torch.compile`` of the convolutional parts of a detector.

What lies between them (sampling, non-maximum suppression, losses) depends on the detections, and is
not compiled.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from gnws_d2.errors import ConfigError

# The name of a part in the configs, and its module that contains only layers.
_MODULES = {
    "backbone": "backbone",  # with the pyramid
    "rpn": "proposal_generator.rpn_head",
    "head": "head",  # of RetinaNet and FCOS
    "box_head": "roi_heads.box_head",
    "mask_head": "roi_heads.mask_head",
}
_OF_BOXES = ("box_head", "mask_head")
_MOST_SIZES = 64


def compile_parts(
    model: nn.Module, parts: Sequence[str], backend: str = "inductor", few_sizes: bool = False
) -> None:
    """Compile ``parts`` of ``model`` at their first call, in place: no module is wrapped, and names
    do not change. A copy of the model is not compiled.

    Args:
        model: a Detectron2 model.
        parts: of "backbone" (with the pyramid), "rpn", "head", "box_head", "mask_head".
        backend: of ``torch.compile``.
        few_sizes: compile backbone, rpn and head for each image size, of which there are few
            (INPUT.SIZE_DIVISIBILITY), instead of once for all sizes.

    Raises:
        ConfigError: the model has no such part.
    """
    if few_sizes:  # each size compiles the same code again; torch gives up after 8
        limit = torch._dynamo.config.recompile_limit
        torch._dynamo.config.recompile_limit = max(limit, _MOST_SIZES)
    for part in parts:
        # The number of boxes differs each time.
        dynamic = True if part in _OF_BOXES else False if few_sizes else None
        for module in _layers(model, part):
            module.compile(backend=backend, dynamic=dynamic)


def _layers(model: nn.Module, part: str) -> list[nn.Module]:
    modules = dict(model.named_modules())
    found = {name: modules[path] for name, path in _MODULES.items() if path in modules}
    if part not in found:
        raise ConfigError(
            f"MODEL.COMPILE.PARTS names {part!r}, which this model does not have. Choose from "
            f"its parts that can be compiled: {', '.join(found)}."
        )
    module = found[part]
    # A mask head's own forward computes the loss; a cascade never calls its list of heads itself.
    if part == "mask_head" or isinstance(module, nn.ModuleList):
        return list(module.children())
    return [module]
