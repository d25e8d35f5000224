"""The data and the random numbers of an iteration do not depend on where a run was started."""

import itertools

import numpy as np
import pytest
import torch

from gnws_d2.engine.data_order import IterationSeed, ResumableLoader, _BatchOrder


def fingerprint(batch: list[dict]) -> list[tuple]:
    return [(d["file_name"], float(d["image"].double().sum()), d["instances"].gt_boxes.tensor.sum())
            for d in batch]  # fmt: skip


def batches(cfg, start: int, stop: int) -> list[list[tuple]]:
    loader = ResumableLoader(cfg)
    loader.seek(seed=5, iteration=start)
    return [fingerprint(batch) for batch in itertools.islice(loader, stop - start)]


# With an augmentation that draws a number for each image.
OPTS = ["INPUT.MIN_SIZE_TRAIN", "(48, 64)", "INPUT.RANDOM_FLIP", "horizontal"]
CONFIG = "Digits/mask_rcnn_R_18_FPN_gn.yaml"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_starts_at_any_iteration(tiny_config, workers):
    cfg = tiny_config(CONFIG, *OPTS, "DATALOADER.NUM_WORKERS", str(workers))
    unbroken = batches(cfg, 0, 12)  # 24 images: into the second epoch of 16
    assert batches(cfg, 7, 12) == unbroken[7:]
    assert len({name for batch in unbroken[:8] for name, *_ in batch}) == 16


@pytest.mark.parametrize("sampler", ["RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler"])
@pytest.mark.parametrize("seed", ["7", "-1"])
def test_every_sampler_is_resumed(tiny_config, sampler, seed):
    """Detectron2 draws some samplers' seeds, and what a random subset is, for each run."""
    cfg = tiny_config(CONFIG, *OPTS, "DATALOADER.SAMPLER_TRAIN", sampler, "SEED", seed)
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.5
    assert batches(cfg, 3, 6) == batches(cfg, 0, 6)[3:]


def test_the_number_of_workers_changes_nothing(tiny_config):
    one, two = (tiny_config(CONFIG, *OPTS, "DATALOADER.NUM_WORKERS", n) for n in "02")
    assert batches(one, 3, 9) == batches(two, 3, 9)


def test_the_order_of_the_images_follows_from_the_seed_alone(tiny_config):
    """A resumed run knows its seed; NumPy's state is another where SEED is not set."""
    cfg = tiny_config(CONFIG, "SEED", "-1")
    seen = []
    for state in (1, 2):
        np.random.seed(state)
        seen.append(batches(cfg, 0, 4))
    assert seen[0] == seen[1]


def test_another_seed_augments_otherwise(tiny_config):
    loader = ResumableLoader(tiny_config(CONFIG, *OPTS))
    seen = []
    for seed in (1, 2):
        loader.seek(seed, 0)
        seen.append([fingerprint(b) for b in itertools.islice(loader, 6)])
    assert seen[0] != seen[1]


def test_loading_leaves_the_random_numbers_of_training_alone(tiny_config):
    loader = iter(ResumableLoader(tiny_config(CONFIG, *OPTS)))
    next(loader)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    next(loader)
    assert torch.equal(torch.rand(3), expected)


def test_batches_hold_one_group_each_and_lose_no_index():
    groups = [i % 3 == 0 for i in range(30)]
    order = _BatchOrder(range(30), groups, batch_size=2, start=0)
    _, positions, indices = zip(*itertools.chain.from_iterable(order), strict=True)
    assert positions == tuple(range(30)) and sorted(indices) == list(range(30))
    assert all(groups[a] == groups[b] for a, b in zip(indices[::2], indices[1::2], strict=True))
    later = _BatchOrder(range(30), groups, batch_size=2, start=4)
    assert list(later) == list(order)[4:]


def test_a_drawn_seed_is_saved_and_resumed():
    drawn, resumed = IterationSeed(-1), IterationSeed(-1)
    assert drawn.seed >= 0 and drawn.seed != resumed.seed
    resumed.load_state_dict(drawn.state_dict())
    assert resumed.seed == drawn.seed
    assert IterationSeed(7).seed == 7
