"""Published checkpoints by name: from the network, the cache or a mirror into a model."""

import hashlib
import os
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from processes import start
from server import fail, send

from gnws_d2 import load_config, model_zoo
from gnws_d2.checkpoint import Checkpointer, CheckpointError, Provenance, detectron2_to_mmdet
from gnws_d2.model_zoo import __main__ as commands
from gnws_d2.model_zoo import published
from gnws_d2.model_zoo.download import DownloadError
from gnws_d2.model_zoo.fetch import cached, fetch
from gnws_d2.model_zoo.published import Published, find

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


@pytest.fixture(scope="module")
def source(config) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return build_model(load_config(config)).state_dict()


@pytest.fixture(scope="module")
def content(source, config, tmp_path_factory) -> bytes:
    """A detector as OpenMMLab publishes one."""
    file = tmp_path_factory.mktemp("content") / "file.pth"
    torch.save({"meta": {"epoch": 12}, "state_dict": detectron2_to_mmdet(source, config)}, file)
    return file.read_bytes()


def entry_of(content: bytes, config: str, url: str, name: str = "small") -> Published:
    sha = hashlib.sha256(content).hexdigest()[:8]
    results = dict.fromkeys(("epochs", "train_mem_gb", "inference_ms", "box_ap", "mask_ap"), "")
    return Published(name, config, **results, url=f"{url}/a/b/model-{sha}.pth")


@pytest.fixture
def entry(content, config, server, monkeypatch) -> Published:
    """The only published checkpoint: ``gnws://small``."""
    entry = entry_of(content, config, server.url)
    server.answers[f"/a/b/{entry.file_name}"] = [send(content)]
    monkeypatch.setattr(published, "published", lambda: (entry,))
    monkeypatch.setattr(commands, "published", lambda: (entry,))
    return entry


@pytest.mark.parametrize("checkpointer", [Checkpointer, DetectionCheckpointer])
def test_a_name_in_model_weights_is_enough(entry, source, config, server, checkpointer):
    """In this project's programs and in any other that imports gnws_d2."""
    cfg = load_config(config, ["MODEL.WEIGHTS", "gnws://small"])
    for _ in range(2):
        model = build_model(cfg)
        checkpointer(model).load(cfg.MODEL.WEIGHTS)
        assert all(torch.equal(t, source[n]) for n, t in model.state_dict().items())
    assert len(server.requests) == 1  # the second time it came from the cache


def test_the_older_file_format_is_read(source, config, server, tmp_path):
    """Files of 2020 are not zip archives yet."""
    file = tmp_path / "old.pth"
    checkpoint = {"meta": {"epoch": 12}, "state_dict": detectron2_to_mmdet(source, config)}
    torch.save(checkpoint, file, _use_new_zipfile_serialization=False)
    entry = entry_of(file.read_bytes(), config, server.url)
    server.answers[f"/a/b/{entry.file_name}"] = [send(file.read_bytes())]
    model = build_model(load_config(config))
    Checkpointer(model).load(str(fetch(entry)))
    assert all(torch.equal(t, source[n]) for n, t in model.state_dict().items())


def test_the_cached_file_says_where_it_is_from(entry):
    provenance = Provenance.read(torch.load(fetch(entry), weights_only=True))
    assert provenance.source == entry.file_name and provenance.input_format == "RGB"
    assert sorted(provenance.standardized) == ["backbone", "box_head", "fpn", "stem"]
    assert provenance.classes[:2] == ["person", "bicycle"] and len(provenance.classes) == 80


def test_an_imagenet_backbone_starts_a_detector(source, config, server, monkeypatch, tmp_path):
    prefix = "backbone.bottom_up."
    backbone = {n.removeprefix(prefix): t for n, t in source.items() if n.startswith(prefix)}
    backbone |= {"linear.weight": torch.zeros(10, 256), "linear.bias": torch.zeros(10)}
    torch.save(detectron2_to_mmdet(backbone, config), tmp_path / "file.pth")
    content = (tmp_path / "file.pth").read_bytes()
    entry = entry_of(content, config, server.url, "imagenet/small")
    server.answers[f"/a/b/{entry.file_name}"] = [send(content)]
    monkeypatch.setattr(published, "published", lambda: (entry,))
    cfg = load_config(config, ["MODEL.WEIGHTS", "gnws://imagenet/small"])
    for checkpointer in (Checkpointer(model := build_model(cfg), cfg=cfg), None):
        if checkpointer is None:
            checkpointer = DetectionCheckpointer(model := build_model(cfg))
        checkpointer.load(cfg.MODEL.WEIGHTS)
        for name, tensor in model.backbone.bottom_up.state_dict().items():
            assert torch.equal(tensor, backbone[name])
    provenance = Provenance.read(torch.load(cached(entry), weights_only=True))
    assert provenance.standardized == ["stem", "backbone"] and provenance.classes is None


def test_the_path_manager_knows_the_names(entry):
    assert PathManager.exists("gnws://small") and PathManager.isfile("gnws://small")
    assert not PathManager.exists("gnws://other")
    with PathManager.open("gnws://small", "rb") as stream:
        assert stream.read(2) == b"PK"
    with pytest.raises(OSError, match="cannot be opened with mode 'wb'"):
        PathManager.open("gnws://small", "wb")
    with pytest.raises(LookupError, match=r"called 'smal'\. Did you mean small\?"):
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


def test_a_mirror_s_address(entry, content, server, monkeypatch):
    server.answers = {f"/mirror/{entry.file_name}": [send(content)]}
    monkeypatch.setenv("GNWS_D2_MIRROR", f"{server.url}/mirror/")
    assert fetch(entry).is_file()


def test_a_folder_of_downloaded_files(entry, content, server, monkeypatch, tmp_path, empty_cache):
    monkeypatch.setenv("GNWS_D2_MIRROR", str(tmp_path))
    (tmp_path / entry.file_name).write_bytes(b"another file")
    with pytest.raises(DownloadError, match=r"GNWS_D2_MIRROR names, is damaged or another file"):
        fetch(entry)
    (tmp_path / entry.file_name).write_bytes(content)
    assert fetch(entry).is_file() and server.requests == []
    assert not (empty_cache / "checkpoints" / entry.file_name).exists()  # used where it is


@pytest.fixture
def forged(content, config, server, monkeypatch) -> tuple[Published, bytes]:
    """A published checkpoint whose name has two digits of its hash, and another file with them."""
    digest = hashlib.sha256(content)
    digits = digest.hexdigest()[:2]
    for i in range(1 << 16):
        (other := digest.copy()).update(end := i.to_bytes(2, "big"))
        if other.hexdigest()[:2] == digits:
            break
    results = dict.fromkeys(("epochs", "train_mem_gb", "inference_ms", "box_ap", "mask_ap"), "")
    entry = Published("small", config, **results, url=f"{server.url}/a/b/model-{digits}.pth")
    server.answers[f"/a/b/{entry.file_name}"] = [send(content)]
    return entry, content + end


def test_the_full_hash_is_recorded_and_checked_from_then_on(
    forged, content, server, monkeypatch, empty_cache, tmp_path, caplog
):
    entry, other = forged
    converted = fetch(entry)
    folder = empty_cache / "checkpoints"
    sha256 = hashlib.sha256(content).hexdigest()
    record = folder / f"{entry.file_name}.sha256"
    assert record.read_text() == f"{sha256}  {entry.file_name}\n"
    assert "authentic" not in caplog.text
    # A forged file in the cache is replaced.
    converted.unlink()
    (folder / entry.file_name).write_bytes(other)
    assert fetch(entry) == converted and len(server.requests) == 2
    # One of a mirror is refused, from a folder as from an address.
    converted.unlink()
    (folder / entry.file_name).unlink()
    (tmp_path / entry.file_name).write_bytes(other)
    server.answers[f"/mirror/{entry.file_name}"] = [send(other)]
    for mirror in (str(tmp_path), f"{server.url}/mirror"):
        monkeypatch.setenv("GNWS_D2_MIRROR", mirror)
        with pytest.raises(DownloadError, match=rf"SHA-256 .*, not {sha256}"):
            fetch(entry)
    assert cached(entry) is None


@pytest.mark.parametrize("kind", ["a folder", "an address"])
def test_a_file_of_a_mirror_is_named_where_its_full_hash_is_unknown(
    entry, content, server, monkeypatch, tmp_path, caplog, kind
):
    server.answers = {f"/mirror/{entry.file_name}": [send(content)]}
    (tmp_path / entry.file_name).write_bytes(content)
    mirror = str(tmp_path) if kind == "a folder" else f"{server.url}/mirror"
    monkeypatch.setenv("GNWS_D2_MIRROR", mirror)
    folder = fetch(entry).parent
    assert caplog.text.count("full SHA-256 is unknown") == 1
    assert not (folder / f"{entry.file_name}.sha256").exists()


@pytest.mark.parametrize("mirror", ["no folder", "ftp://x/y", "s3://bucket", "https:/one", "."])
def test_an_unusable_mirror_is_an_error_and_nothing_is_downloaded(
    entry, server, monkeypatch, tmp_path, mirror
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GNWS_D2_MIRROR", mirror)
    with pytest.raises(DownloadError, match="GNWS_D2_MIRROR"):
        fetch(entry)
    assert server.requests == []


def test_a_file_put_into_the_cache_by_hand(entry, content, server, empty_cache):
    server.answers[f"/a/b/{entry.file_name}"] = [fail(404)]
    with pytest.raises(DownloadError) as error:
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


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("made by a checkpoint",)


def test_a_malicious_file_is_refused_though_its_hash_is_right(
    config, server, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Malicious()}, tmp_path / "bad.pth")
    for content in ((tmp_path / "bad.pth").read_bytes(), pickle.dumps(Malicious())):
        entry = entry_of(content, config, server.url)
        server.answers[f"/a/b/{entry.file_name}"] = [send(content)]
        with pytest.raises(CheckpointError, match="holds more than tensors"):
            fetch(entry)
        assert cached(entry) is None
    assert not (tmp_path / "made by a checkpoint").exists()


def test_a_file_of_another_model_is_refused(source, server, content, tmp_path):
    entry = entry_of(content, "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml", server.url)
    server.answers[f"/a/b/{entry.file_name}"] = [send(content)]
    with pytest.raises(CheckpointError, match=rf"{entry.file_name}: .*does not fit"):
        fetch(entry)
    assert cached(entry) is None


FETCH = """
import sys
from gnws_d2.model_zoo.fetch import fetch
from gnws_d2.model_zoo.published import Published
print(fetch(Published("small", sys.argv[1], "", "", "", "", "", sys.argv[2])))
"""


@pytest.mark.slow
def test_of_eight_processes_one_downloads(entry, server, content, tmp_path):
    server.answers[f"/a/b/{entry.file_name}"] = [send(content, slow=0.005)]
    program = tmp_path / "fetch.py"
    program.write_text(FETCH)
    printed = [tmp_path / f"printed_{i}" for i in range(8)]
    started = [start(program, entry.config, entry.url, stdout=str(file)) for file in printed]
    for process in started:
        process.join(300)
    assert {file.read_text().strip() for file in printed} == {str(cached(entry))}
    assert len(server.requests) == 1


def test_prefetch_and_list(entry, server, capsys, monkeypatch):
    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["model_zoo", *words])
        code = commands.main()
        return code, *capsys.readouterr()

    code, out, _ = run("list")
    assert code == 0 and "small" in out and "yes" not in out
    assert "Digits/fcos_R_18_FPN_gn_ws.py" in out and "lazy_common" not in out
    code, out, _ = run("prefetch", "all")
    assert code == 0 and str(cached(entry)) in out
    assert "yes" in run("list")[1]
    shutil.rmtree(cached(entry).parent)
    server.answers[f"/a/b/{entry.file_name}"] = [fail(404)]
    code, _, err = run("prefetch", "small")
    assert code == 1 and "cannot be downloaded" in err
    with pytest.raises(SystemExit, match="No published checkpoint is called 'large'"):
        run("prefetch", "large")


def test_a_model_with_its_published_weights(entry, source, config, monkeypatch):
    monkeypatch.setattr(model_zoo.model_zoo, "published", lambda: (entry,))
    model = model_zoo.get(config, trained=True, device="cpu")
    assert all(torch.equal(t, source[n]) for n, t in model.state_dict().items())


def test_every_name_in_the_table_is_found_by_name_and_by_config():
    assert len(published.published()) == 18
    for entry in published.published():
        assert find(entry.uri) is entry and len(entry.sha256) == 8
        assert int(entry.sha256, 16) >= 0 and entry.file_name.endswith(f"{entry.sha256}.pth")
        assert Path(model_zoo.get_config_file(entry.config)).is_file()
        if not entry.is_backbone:
            assert find(entry.config) is entry
