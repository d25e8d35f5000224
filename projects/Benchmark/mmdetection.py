"""MMDetection's own model, as a runtime of runtimes.py, where it is installed.

    MMCV_WITH_OPS=1 FORCE_CUDA=0 pip install --no-build-isolation \
        onedl-mmcv==2.3.6 onedl-mmengine==0.10.12 onedl-mmdetection==3.5.1

These are maintained forks of mmcv, mmengine and mmdet; the operators of the first compile for half
an hour or more.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch

from gnws_d2.checkpoint import detectron2_to_mmdet
from gnws_d2.model_zoo.published import find
from gnws_d2.projects.export import Outputs

is_installed = find_spec("mmdet") is not None


class MMDetection:
    """A model of ``configs/gn+ws`` with the weights of one of ours.

    Takes and returns what :class:`gnws_d2.projects.export.Detector` does: masks are not pasted.

    Args:
        config_file: the packaged config of the same model.
        state_dict: with Detectron2's names.
    """

    def __init__(self, config_file: str, state_dict: Mapping[str, torch.Tensor]) -> None:
        import mmdet
        from mmdet.registry import MODELS
        from mmdet.utils import register_all_modules
        from mmengine.config import Config

        name = find(config_file).name.replace("gn_ws", "gn-ws")
        folder = Path(mmdet.__file__).parent / ".mim" / "configs" / "gn+ws"
        config = Config.fromfile(folder / f"{name}.py")
        config.model.backbone.init_cfg = None  # would download
        register_all_modules()
        self.model = MODELS.build(config.model).eval()
        self.model.load_state_dict(detectron2_to_mmdet(state_dict, config_file))

    @torch.no_grad()
    def __call__(self, image: torch.Tensor) -> Outputs:
        from mmdet.structures import DetDataSample
        from mmdet.structures.bbox import bbox2roi

        sample = DetDataSample(metainfo={"img_shape": image.shape[1:], "scale_factor": (1.0, 1.0)})
        # Its data are BGR, and the preprocessor makes RGB of them, which our configs read.
        data = self.model.data_preprocessor({"inputs": [image.flip(0)], "data_samples": [sample]})
        features, samples = self.model.extract_feat(data["inputs"]), data["data_samples"]
        proposals = self.model.rpn_head.predict(features, samples, rescale=False)
        heads, metas = self.model.roi_head, [sample.metainfo for sample in samples]
        [found] = heads.predict_bbox(features, metas, proposals, heads.test_cfg, rescale=False)
        outputs = (found.bboxes, found.scores, found.labels)
        if not heads.with_mask:
            return outputs
        masks = heads._mask_forward(features, bbox2roi([found.bboxes]))["mask_preds"]
        return *outputs, masks[torch.arange(len(masks)), found.labels][:, None].sigmoid()
