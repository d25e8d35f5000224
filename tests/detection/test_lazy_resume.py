"""Training of a LazyConfig, resumed from the middle."""

import torch

from gnws_d2.engine import ResumableLoader
from gnws_d2.projects.detection.lazy_config import load_lazy_config
from gnws_d2.projects.detection import lazyconfig_train_net

OPTS = [
    *("train.device=cpu", "train.max_iter=4", "train.checkpointer.period=2", "train.eval_period=0"),
    *("dataloader.train.total_batch_size=2", "+train.seed=5"),
    "dataloader.train.mapper.augmentations.0.short_edge_length=[48,64]",  # drawn for each image
]


def test_it_ends_with_the_checkpoint_of_an_unbroken_one(digits, tmp_path):
    cfg = load_lazy_config(
        "Digits/mask_rcnn_R_18_FPN_gn_ws.py", [*OPTS, f"train.output_dir={tmp_path}"]
    )
    lazyconfig_train_net.train(cfg.copy(), resume=False)
    final = tmp_path / "model_final.pth"
    whole = torch.load(final, weights_only=True)
    for last in ("model_0000001.pth", "model_0000003.pth"):  # or killed before the final one
        final.unlink()
        (tmp_path / "last_checkpoint").write_text(last)
        lazyconfig_train_net.train(cfg.copy(), resume=True)
        resumed = torch.load(final, weights_only=True)
        assert resumed["iteration"] == 3
        for name, tensor in whole["model"].items():
            assert torch.equal(resumed["model"][name], tensor), name


def test_a_loader_of_ones_own_is_built_as_it_says():
    cfg = load_lazy_config("Digits/mask_rcnn_R_18_FPN_gn_ws.py", OPTS)
    node = cfg.dataloader.train
    assert isinstance(lazyconfig_train_net.build_train_loader(node), ResumableLoader)
    node.collate_fn = len  # an argument that ours does not have
    assert not isinstance(lazyconfig_train_net.build_train_loader(node), ResumableLoader)
