"""The interface of an exported detector in every format: one image in, tensors out."""

# Without the __future__ import: TorchScript reads the annotations of forward() as objects.
import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import nn

Outputs = tuple[torch.Tensor, ...]

# Fields of Detectron2's Instances and the names of the outputs, in their order.
FIELDS = {
    "pred_boxes": "boxes",
    "scores": "scores",
    "pred_classes": "classes",
    "pred_masks": "masks",
    "pred_keypoints": "keypoints",
}


class Detector(nn.Module):
    """A Detectron2 model as a function of one image.

    Takes a float32 tensor (3, H, W), levels 0 to 255 in the channel order of INPUT.FORMAT, already
    resized for the network. Returns ``boxes`` (N, 4) as x0, y0, x1, y1 in pixels of
    that image, ``scores`` (N,) in descending order, ``classes`` (N,), and where the model has
    them ``masks`` (N, 1, 28, 28), probabilities over the box, and ``keypoints`` (N, K, 3). A
    semantic segmentation model returns ``sem_seg`` (classes, H, W). Panoptic models are not
    supported.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.eval()

    def forward(self, image: torch.Tensor) -> Outputs:
        if isinstance(self.model, GeneralizedRCNN):
            # Masks as the head predicts them: the program that shows them pastes them.
            instances = self.model.inference([{"image": image}], do_postprocess=False)[0]
        elif isinstance(self.model, DenseDetector):
            instances = self.model([{"image": image}])[0]["instances"]
        else:
            return (self.model([{"image": image}])[0]["sem_seg"],)
        fields = {name: instances.get(name) for name in FIELDS if instances.has(name)}
        boxes = fields.pop("pred_boxes").tensor
        return boxes, *fields.values()


def output_names(model: nn.Module) -> list[str]:
    """The names of the outputs of :class:`Detector`, in order."""
    if not isinstance(model, (GeneralizedRCNN, DenseDetector)):
        return ["sem_seg"]
    heads = getattr(model, "roi_heads", None)
    extras = [name for name in ("mask", "keypoint") if getattr(heads, f"{name}_on", False)]
    return ["boxes", "scores", "classes", *(f"{name}s" for name in extras)]
