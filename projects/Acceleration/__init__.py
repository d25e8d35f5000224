"""How a model is run, not what it computes; installed as `gnws_d2.projects.acceleration`."""

from .accelerate import accelerate, add_acceleration_config
from .activation_checkpointing import checkpoint_activations
from .fuse import fuse_norm_relu
from .fused_group_norm import GroupNormReLU, group_norm_relu
from .layout import pad_to_multiples, use_channels_last

__all__ = [
    "GroupNormReLU",
    "accelerate",
    "add_acceleration_config",
    "checkpoint_activations",
    "fuse_norm_relu",
    "group_norm_relu",
    "pad_to_multiples",
    "use_channels_last",
]
