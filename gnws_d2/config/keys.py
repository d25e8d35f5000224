"""Every config key this package adds, and facts about keys that are used in several places."""

from __future__ import annotations

from detectron2.config import CfgNode

META_ARCHITECTURE = "WeightStandardizedModel"  # a wrapper around another one

# Names of datasets: one, or a tuple of them.
DATASET_KEYS = ("DATASETS.TRAIN", "DATASETS.TEST", "DATASETS.FINAL_TEST")

# Lengths in epochs -> what they determine, in iterations.
EPOCH_KEYS = {
    "SOLVER.EPOCHS": {"SOLVER.MAX_ITER", "SOLVER.STEPS"},
    "SOLVER.CHECKPOINT_EPOCHS": {"SOLVER.CHECKPOINT_PERIOD"},
    "TEST.EVAL_EPOCHS": {"TEST.EVAL_PERIOD"},
}

# Ignored with a warning where an older config sets them.
REMOVED_KEYS = {
    "SOLVER.ACCUMULATION_NORMALIZER",
    "MODEL.GN.REBUILD_ACTIVATIONS",  # projects/Acceleration: RECOMPUTE_ACTIVATIONS
    "MODEL.GN.REBUILD_CONVOLUTIONS",
}


def add_gnws_config(cfg: CfgNode) -> None:
    """Add this package's keys to ``cfg``, in place, and change no other."""
    # For models that build a part without a registry, such as the head of RetinaNet, and to choose
    # parts: with MODEL.META_ARCHITECTURE "WeightStandardizedModel", the model that is built and
    # then standardized.
    cfg.MODEL.WS = CfgNode()
    cfg.MODEL.WS.META_ARCHITECTURE = "GeneralizedRCNN"
    # Its parts whose normalized convolutions use a standardized weight, of: stem, backbone, fpn,
    # rpn, box_head, mask_head, ... (each model names its own; the build log lists them).
    # The norm itself is chosen by Detectron2's NORM key of the same part.
    cfg.MODEL.WS.PARTS = []
    # Batch-Channel Normalization, where a NORM key is "BCN" (statistics of the batch), "EstBCN"
    # (running estimates, for one or two images a process), "SyncBCN" or "SyncEstBCN" (those of
    # all processes). The components of this package take these values, and any component in a
    # "WeightStandardizedModel".
    cfg.MODEL.BCN = CfgNode()
    # The fraction of the way that the estimates move to the statistics of the batch at each step,
    # at most 1. 0 is unset; training with estimates then refuses to start.
    cfg.MODEL.BCN.MOVING_SPEED = 0.0
    # "lr": the speed falls with the learning rate, without its warm-up. "constant": it stays.
    cfg.MODEL.BCN.SCHEDULE = "lr"
    # Reinitialize the layers that predict classes, boxes and masks if MODEL.WEIGHTS was trained on
    # other classes, and list them, instead of refusing the file.
    cfg.MODEL.REMAKE_PREDICTORS = False
    # How images are resized for evaluation: "pil", as in Detectron2, or "cv2", as in MMDetection,
    # with which the published AP was measured.
    cfg.INPUT.RESIZE_TEST = "pil"
    # The same for training. The two differ where images shrink, and by at most one level where they
    # grow, as most of COCO does.
    cfg.INPUT.RESIZE_TRAIN = "pil"
    # The names of the classes in the predictor's order, and their ids in annotation files and
    # results. Where a dataset is a COCO file (docs/own-data.md), fit_to_data takes them from it.
    cfg.DATASETS.CLASSES = []
    cfg.DATASETS.CATEGORY_IDS = []
    # Datasets that are evaluated once after training, with the best checkpoint.
    cfg.DATASETS.FINAL_TEST = ()
    # Go on without the images and annotations that would train or evaluate wrong, and list them in
    # OUTPUT_DIR/skipped_annotations.json, instead of refusing the dataset.
    cfg.DATALOADER.SKIP_BAD_ANNOTATIONS = False
    # Which images and objects are trained on. "mmdetection" drops objects narrower than a pixel and
    # images with a side below 32, and keeps images that only have crowds; "detectron2" drops only
    # the latter. Both drop images without annotations, unless
    # DATALOADER.FILTER_EMPTY_ANNOTATIONS is False.
    cfg.DATALOADER.FILTER = "mmdetection"
    # The precision of SOLVER.AMP: "float16", or "bfloat16", which needs no scaling of the loss.
    cfg.SOLVER.AMP.DTYPE = "float16"
    # The precision of evaluation: "float32", or under autocast "bfloat16" or "float16".
    cfg.TEST.PRECISION = "float32"
    # The number of micro-batches that each process runs for an optimizer step, one after the other,
    # in the memory of one. It computes what this many processes compute with one micro-batch each.
    # Above 1, REFERENCE_WORLD_SIZE does not scale IMS_PER_BATCH.
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # Another IMS_PER_BATCH, to which learning rate and schedule are scaled linearly, in place of
    # the scaling by REFERENCE_WORLD_SIZE. 0 scales to no batch.
    cfg.SOLVER.SCALE_TO_BATCH = 0
    # Lengths in epochs, passes over the images that are trained on, where more than 0. Training
    # turns them into MAX_ITER, CHECKPOINT_PERIOD and TEST.EVAL_PERIOD and sets them back to 0;
    # STEPS keep their fractions of MAX_ITER.
    cfg.SOLVER.EPOCHS = 0.0
    cfg.SOLVER.CHECKPOINT_EPOCHS = 0.0
    cfg.TEST.EVAL_EPOCHS = 0.0
    # The metric whose best evaluation is kept as model_best.pth, such as "bbox/AP50"; "auto"
    # chooses the AP or mIoU of the model's main task, "" keeps none. With several test sets,
    # "auto" takes the first; a name then begins with that of the set: "my_val/bbox/AP50".
    cfg.TEST.BEST_METRIC = "auto"
    # Stop after this many evaluations in a row without a better TEST.BEST_METRIC. 0 never stops.
    cfg.SOLVER.EARLY_STOPPING = 0
    # How many seconds a process waits for another before it ends with an error: one evaluates while
    # the others wait.
    cfg.SOLVER.PROCESS_TIMEOUT = 1800.0
    for key in REMOVED_KEYS - cfg.__dict__[CfgNode.DEPRECATED_KEYS]:
        cfg.register_deprecated_key(key)
