"""The config keys of this project."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_acceleration_config(cfg: CfgNode) -> None:
    """Add this project's keys to ``cfg``, in place."""
    cfg.MODEL.GN = CfgNode()
    # Run GroupNorm and the ReLU after it as one operation: "always", "never", or "auto", which
    # fuses on a GPU with Triton and where something is recomputed. "never" by default,
    # because the kernels have not been measured on a GPU yet. The environment variable
    # GNWS_D2_KERNELS=torch turns Triton off.
    cfg.MODEL.GN.FUSE_RELU = "never"
    # Keep only the input of GroupNorm + ReLU, and recompute the result in backward for the layer
    # after it: less memory, one more pass over the activation, the same gradients.
    cfg.MODEL.GN.RECOMPUTE_ACTIVATIONS = False
    # The same, and also recompute the input of GroupNorm where it comes from a 1x1 convolution with
    # no more input than output channels, as at the end of a bottleneck block: even less memory, and
    # the forward of these convolutions once more.
    cfg.MODEL.GN.RECOMPUTE_CONVOLUTIONS = False
    # Stages of a ResNet, of "res2" to "res5", that keep only the inputs of their blocks for
    # backward and recompute the rest: less memory, more time, the same gradients.
    cfg.MODEL.BACKBONE.ACTIVATION_CHECKPOINTING = []
    # Store weights and feature maps with the channels as the fastest dimension, the format in
    # which tensor cores compute. Values, names and checkpoints do not change.
    cfg.MODEL.CHANNELS_LAST = False
    # Pad images to multiples of this many pixels, so that there are few sizes for cuDNN to try. GN
    # sees the padding, so scores change a little. 0: pad as the backbone
    # needs it, to multiples of 32 with a feature pyramid.
    cfg.INPUT.SIZE_DIVISIBILITY = 0
    # Of older versions; torch.compile was slower.
    compiling = {"MODEL.COMPILE", "MODEL.COMPILE.PARTS", "MODEL.COMPILE.BACKEND"}
    for key in compiling - cfg.__dict__[CfgNode.DEPRECATED_KEYS]:
        cfg.register_deprecated_key(key)
