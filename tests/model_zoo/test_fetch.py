"""Published checkpoints by name: from the network, the cache or a mirror into a model."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from processes import start
from server import fail, send
from torch import nn

from gnws.arguments import parse
from gnws_d2 import load_config, model_zoo
from gnws_d2.checkpoint import Checkpointer, Provenance, detectron2_to_mmdet
from gnws_d2.errors import CheckpointError, FileError
from gnws_d2.model_zoo import published
from gnws_d2.model_zoo.fetch import cached, fetch
from gnws_d2.model_zoo.published import Published
from gnws_d2.projects.detection import zoo

pytestmark = pytest.mark.usefixtures("empty_cache")

# As small as a ResNet with GN gets: 3 million parameters.
SMALL = """
_BASE_: "{base}"
MODEL:
  RESNETS: {{STEM_OUT_CHANNELS: 32, RES2_OUT_CHANNELS: 32, WIDTH_PER_GROUP: 32}}
  FPN: {{OUT_CHANNELS: 32}}
  ROI_BOX_HEAD: {{CONV_DIM: 32, FC_DIM: 32}}
"""
BASE = "COCO-Detection/faster_rcnn_R_50_FPN_gn_ws_1x.yaml"


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("config") / "small.yaml"
    file.write_text(SMALL.format(base=model_zoo.get_config_file(BASE)))
    return str(file)


def assert_equal(model: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(t, expected[n]) for n, t in model.state_dict().items())


@pytest.fixture(scope="module")
def source(config) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return build_model(load_config(config)).state_dict()


@pytest.fixture(scope="module")
def content(source, config, tmp_path_factory) -> bytes:
    """A detector as OpenMMLab publishes one; files of 2020 are not zip archives yet."""
    file = tmp_path_factory.mktemp("content") / "file.pth"
    published = {"meta": {"epoch": 12}, "state_dict": detectron2_to_mmdet(source, config)}
    torch.save(published, file, _use_new_zipfile_serialization=False)
    return file.read_bytes()


@pytest.fixture
def publish(config, server, monkeypatch):
    """``publish(content)`` makes it the only published checkpoint: ``gnws://small``."""

    def make(content: bytes, name: str = "small", config: str = config) -> Published:
        sha = hashlib.sha256(content).hexdigest()[:8]
        entry = Published(name, config, "", "", f"{server.url}/a/b/model-{sha}.pth")
        server.answers[f"/a/b/{entry.file_name}"] = [send(content)]
        for module in (published, zoo):
            monkeypatch.setattr(module, "published", lambda: (entry,))
        return entry

    return make


@pytest.fixture
def entry(content, publish) -> Published:
    return publish(content)


@pytest.mark.parametrize("checkpointer", [Checkpointer, DetectionCheckpointer])
def test_a_name_in_model_weights_is_enough(entry, source, config, server, checkpointer):
    """In this project's programs and in any other that imports gnws_d2."""
    cfg = load_config(config, ["MODEL.WEIGHTS", "gnws://small"])
    for _ in range(2):
        model = build_model(cfg)
        checkpointer(model).load(cfg.MODEL.WEIGHTS)
        assert_equal(model, source)
    assert_equal(model_zoo.get(config, trained=True, device="cpu"), source)
    assert len(server.requests) == 1  # then it came from the cache
    provenance = Provenance.read(torch.load(cached(entry), weights_only=True))
    assert provenance.source == entry.file_name and provenance.input_format == "RGB"
    assert sorted(provenance.standardized) == ["backbone", "box_head", "fpn", "stem"]
    assert provenance.classes[:2] == ["person", "bicycle"] and len(provenance.classes) == 80


@pytest.mark.parametrize("checkpointer", [Checkpointer, DetectionCheckpointer])
def test_an_imagenet_backbone_starts_a_detector(source, config, publish, tmp_path, checkpointer):
    prefix = "backbone.bottom_up."
    backbone = {n.removeprefix(prefix): t for n, t in source.items() if n.startswith(prefix)}
    classifier = {"linear.weight": torch.zeros(10, 256), "linear.bias": torch.zeros(10)}
    torch.save(detectron2_to_mmdet({**backbone, **classifier}, config), tmp_path / "file.pth")
    entry = publish((tmp_path / "file.pth").read_bytes(), "imagenet/small")
    model = build_model(load_config(config))
    checkpointer(model).load("gnws://imagenet/small")
    assert_equal(model.backbone.bottom_up, backbone)
    provenance = Provenance.read(torch.load(cached(entry), weights_only=True))
    assert provenance.standardized == ["stem", "backbone"] and provenance.classes is None


def test_the_path_manager_knows_the_names(entry):
    with PathManager.open("gnws://small", "rb") as stream:
        assert stream.read(2) == b"PK"
    with pytest.raises(CheckpointError, match=r"called 'smal'\. Did you mean small\?"):
        PathManager.get_local_path("gnws://smal")


@pytest.mark.parametrize("which", ["converted", "original", "both"])
def test_a_cached_file_that_is_damaged_later_is_made_again(entry, server, which, empty_cache):
    file = fetch(entry)
    before = file.read_bytes()
    original = empty_cache / "checkpoints" / entry.file_name
    for damaged, kind in ((file, "converted"), (original, "original")):
        if which in (kind, "both"):
            content = bytearray(damaged.read_bytes())
            content[len(content) // 2] ^= 1
            damaged.write_bytes(content)
    assert fetch(entry).read_bytes() == before
    assert len(server.requests) == (2 if which == "both" else 1)


@pytest.mark.parametrize("kind", ["a folder", "an address"])
def test_a_mirror(entry, content, server, monkeypatch, tmp_path, kind):
    server.answers = {f"/mirror/{entry.file_name}": [send(content)]}
    mirror = str(tmp_path) if kind == "a folder" else f"{server.url}/mirror/"
    monkeypatch.setenv("GNWS_D2_MIRROR", mirror)
    copy = tmp_path / entry.file_name
    copy.write_bytes(content)
    file = fetch(entry)
    assert len(server.requests) == (0 if kind == "a folder" else 1)
    assert file.with_name(copy.name).exists() == (kind == "an address")  # else used where it is


@pytest.mark.parametrize("mirror", ["no folder", "ftp://x/y", "s3://bucket", "https:/one", "."])
def test_an_unusable_mirror_is_an_error_and_nothing_is_downloaded(
    entry, server, monkeypatch, tmp_path, mirror
):
    monkeypatch.chdir(tmp_path)
    Path(entry.file_name).write_bytes(b"another file")
    monkeypatch.setenv("GNWS_D2_MIRROR", mirror)
    with pytest.raises(FileError, match=rf"{entry.file_name} .*SHA-256 .*GNWS_D2_MIRROR"):
        fetch(entry)
    assert server.requests == []


def test_a_file_put_into_the_cache_by_hand(entry, content, server, empty_cache):
    server.answers[f"/a/b/{entry.file_name}"] = [fail(404)]
    with pytest.raises(FileError) as error:
        fetch(entry)
    folder = empty_cache / "checkpoints"
    assert f"put it in {folder}" in str(error.value)
    (folder / entry.file_name).write_bytes(content)
    assert fetch(entry).is_file()


def test_a_cache_that_cannot_be_written_serves_what_it_has(entry, empty_cache):
    file = fetch(entry)
    folder = empty_cache / "checkpoints"
    (folder / f"{entry.file_name}.lock").unlink(missing_ok=True)
    folder.chmod(0o555)
    try:
        assert fetch(entry) == file
        assert not (folder / f"{entry.file_name}.lock").exists()
    finally:
        folder.chmod(0o755)


def test_a_file_of_another_model_is_refused(publish, content):
    entry = publish(content, config="Digits/mask_rcnn_R_18_FPN_gn_ws.yaml")
    with pytest.raises(CheckpointError, match=rf"{entry.file_name}: .*does not fit"):
        fetch(entry)
    assert not cached(entry).exists()


FETCH = """
import sys
from gnws_d2.model_zoo.fetch import fetch
from gnws_d2.model_zoo.published import Published
print(fetch(Published("small", sys.argv[1], "", "", sys.argv[2])))
"""


@pytest.mark.slow
def test_of_four_processes_one_downloads(entry, server, content, tmp_path):
    server.answers[f"/a/b/{entry.file_name}"] = [send(content, slow=0.005)]
    program = tmp_path / "fetch.py"
    program.write_text(FETCH)
    printed = [tmp_path / f"printed_{i}" for i in range(4)]
    started = [start(program, entry.config, entry.url, stdout=str(file)) for file in printed]
    for process in started:
        process.join(300)
    assert {file.read_text().strip() for file in printed} == {str(cached(entry))}
    assert len(server.requests) == 1


def test_prefetch_and_list(entry, server, capsys, caplog):
    assert zoo.main(parse("zoo", ["list"])) == 0
    out = capsys.readouterr().out
    assert "small" in out and "yes" not in out
    assert "Digits/fcos_R_18_FPN_gn_ws.py" in out and "lazy_common" not in out
    assert zoo.main(parse("zoo", ["prefetch", "all"])) == 0
    assert str(cached(entry)) in capsys.readouterr().out
    assert zoo.main(parse("zoo", ["list"])) == 0 and "yes" in capsys.readouterr().out
    shutil.rmtree(cached(entry).parent)
    server.answers[f"/a/b/{entry.file_name}"] = [fail(404)]
    assert (
        zoo.main(parse("zoo", ["prefetch", "small"])) == 1 and "cannot be downloaded" in caplog.text
    )
    with pytest.raises(SystemExit, match="No published checkpoint is called 'large'"):
        zoo.main(parse("zoo", ["prefetch", "large"]))
