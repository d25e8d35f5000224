"""The meta-architecture through which a config standardizes any Detectron2 model."""

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from ..config import META_ARCHITECTURE
from ..errors import ConfigError
from .norms import with_norm_layers
from .standardize import standardize


@META_ARCH_REGISTRY.register()
def WeightStandardizedModel(cfg: CfgNode) -> nn.Module:
    """Build ``MODEL.WS.META_ARCHITECTURE`` with Detectron2's own builders, standardize
    ``MODEL.WS.PARTS`` of it, and return it: the model keeps its class.

    Raises:
        ConfigError: there is no such meta-architecture, or see :func:`.standardize.standardize`.
    """
    name = cfg.MODEL.WS.META_ARCHITECTURE
    if name == META_ARCHITECTURE or name not in META_ARCH_REGISTRY:
        known = sorted(key for key, _ in META_ARCH_REGISTRY if key != META_ARCHITECTURE)
        raise ConfigError(
            f"MODEL.WS.META_ARCHITECTURE is {name!r}, which is not a meta-architecture that can be "
            f"standardized. Choose from: {', '.join(known)}."
        )
    return standardize(META_ARCH_REGISTRY.get(name)(with_norm_layers(cfg)), cfg.MODEL.WS.PARTS)
