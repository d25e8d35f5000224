"""The data and the random numbers of an iteration depend on the seed and the process, not on where
a run was started, or on the number of data workers."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.utils import comm

from gnws_d2.engine.accumulation import micro_batches
from gnws_d2.engine.data_order import SAMPLERS, IterationSeed, ResumableLoader, batch_order
from gnws_d2.errors import ConfigError

CONFIG = "Digits/mask_rcnn_R_18_FPN_gn.yaml"
# Augmentations that draw numbers for each image.
OPTS = ["INPUT.MIN_SIZE_TRAIN", "(48, 56, 64, 72, 80)", "INPUT.RANDOM_FLIP", "horizontal"]


def fingerprint(batch: list[dict]) -> list[tuple[str, float]]:
    return [(d["file_name"], float(d["image"][:, :, :20].double().sum())) for d in batch]


def batches(cfg, start: int, stop: int, seed: int = 5) -> list[list[tuple]]:
    loader = ResumableLoader(cfg)
    loader.seek(seed, iteration=start)
    return [fingerprint(batch) for batch in itertools.islice(loader, stop - start)]


def be_process(monkeypatch: pytest.MonkeyPatch, rank: int, world: int) -> None:
    """Take the part of one of several processes, in loading data."""
    monkeypatch.setattr(comm, "all_gather", lambda data: [data])
    monkeypatch.setattr(comm, "get_world_size", lambda: world)
    monkeypatch.setattr(comm, "get_rank", lambda: rank)


@pytest.mark.parametrize(("rank", "world"), [(0, 1), (1, 2)])
def test_batches_start_at_any_iteration_with_any_number_of_workers(
    tiny_config, monkeypatch, rank, world
):
    be_process(monkeypatch, rank, world)
    opts = ["SOLVER.IMS_PER_BATCH", str(2 * world)]
    zero, one, two = (tiny_config(CONFIG, *OPTS, *opts, "DATALOADER.NUM_WORKERS", n) for n in "012")
    unbroken = batches(zero, 0, 12)  # 24 images: into the second epoch of 16
    assert batches(zero, 7, 12) == batches(one, 7, 12) == batches(two, 7, 12) == unbroken[7:]
    if world == 1:
        assert len({name for batch in unbroken[:8] for name, _ in batch}) == 16


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("seed", ["7", "-1"])
def test_every_sampler_is_resumed(tiny_config, sampler, seed):
    """Detectron2 draws some samplers' seeds, and what a random subset is, for each run."""
    cfg = tiny_config(CONFIG, *OPTS, "DATALOADER.SAMPLER_TRAIN", sampler, "SEED", seed)
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.5
    assert batches(cfg, 3, 6) == batches(cfg, 0, 6)[3:]


@pytest.mark.parametrize(
    ("opts", "said"),
    [
        ("SAMPLER_TRAIN RandomSampler", "is 'RandomSampler'. Set it to one of TrainingSampler, "),
        ("RANDOM_SUBSET_RATIO 0.01", "is 0.01, of 16 images"),
        ("RANDOM_SUBSET_RATIO 2.0", "is 2.0, of 16 images"),
    ],
)
def test_a_sampler_that_cannot_be_built_is_refused(tiny_config, opts, said):
    sampler = ["DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler"]
    with pytest.raises(ConfigError, match=said):
        ResumableLoader(tiny_config(CONFIG, *sampler, *f"DATALOADER.{opts}".split()))


def test_images_without_annotations_are_not_counted(tiny_config):
    cfg = tiny_config(CONFIG, "DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler")
    with pytest.raises(ConfigError, match="have no list of annotations to count"):
        ResumableLoader(cfg, dataset=[{"file_name": "a.png", "width": 9, "height": 9}])


def test_data_follows_from_the_seed_alone_and_leaves_the_numbers_of_training_alone(tiny_config):
    """A resumed run knows its seed; NumPy's state is another where SEED is not set."""
    cfg, seen, drawn = tiny_config(CONFIG, *OPTS, "SEED", "-1"), [], []
    for state, seed in ((1, 5), (2, 5), (2, 6)):
        np.random.seed(state)
        torch.manual_seed(state)
        seen.append(batches(cfg, 0, 6, seed))
        drawn.append((float(np.random.rand()), float(torch.rand(1))))
    assert seen[0] == seen[1] != seen[2]
    np.random.seed(2)
    torch.manual_seed(2)
    assert drawn[1] == drawn[2] == (float(np.random.rand()), float(torch.rand(1)))


def test_processes_draw_their_own_augmentations(tiny_config, monkeypatch):
    seen = []
    for rank in (0, 1):
        be_process(monkeypatch, rank, 2)
        seen.append(dict(itertools.chain(*batches(tiny_config(CONFIG, *OPTS), 0, 12))))
    # 12 of 16 images each: several are seen by both, in different epochs or not.
    shared = seen[0].keys() & seen[1].keys()
    assert len(shared) > 4 and sum(seen[0][name] != seen[1][name] for name in shared) > 2


def test_micro_batches_get_the_images_and_draws_of_their_processes(tiny_config, monkeypatch):
    def seen(world: int, rank: int, steps: int) -> list[tuple]:
        """Two iterations of a process: of each micro-batch, its images and a random number."""
        be_process(monkeypatch, rank, world)
        opts = ["SOLVER.IMS_PER_BATCH", "8", "SOLVER.ACCUMULATION_STEPS", str(steps)]
        loader, seed = ResumableLoader(tiny_config(CONFIG, *OPTS, *opts)), IterationSeed(5)
        found = []
        for iteration, batch in enumerate(itertools.islice(loader, 2)):
            seed.trainer = SimpleNamespace(iter=iteration)
            for i, part in enumerate(micro_batches(batch, steps)):
                seed.before_micro_batch(i)
                found.append((fingerprint(part), float(torch.rand(1))))
        return found

    four = [seen(4, rank, 1) for rank in range(4)]
    expected = [four[rank][iteration] for iteration in range(2) for rank in range(4)]
    assert len({str(part) for part in expected}) == 8
    assert seen(1, 0, 4) == expected
    two = [seen(2, rank, 2) for rank in range(2)]
    assert [two[i % 2][2 * (i // 4) + i % 4 // 2] for i in range(8)] == expected


def test_batches_hold_one_group_each_and_lose_no_index():
    groups = [i % 3 == 0 for i in range(30)]
    order = list(batch_order(range(30), groups, batch_size=2, processes=[0]))
    _, positions, indices = zip(*itertools.chain.from_iterable(order), strict=True)
    assert positions == tuple(range(30)) and sorted(indices) == list(range(30))
    assert all(groups[a] == groups[b] for a, b in zip(indices[::2], indices[1::2], strict=True))


def test_a_drawn_seed_is_saved_and_resumed():
    drawn, resumed = IterationSeed(-1), IterationSeed(-1)
    assert drawn.seed >= 0 and drawn.seed != resumed.seed
    resumed.load_state_dict(drawn.state_dict())
    assert resumed.seed == drawn.seed
    assert IterationSeed(7).seed == 7
