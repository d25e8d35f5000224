"""What is read from a file is tensors that fit, or an error; what is written appears whole."""

import logging

import pytest
import torch
import yaml
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from torch import nn

import gnws_d2
from gnws_d2.checkpoint import Checkpointer, Provenance
from gnws_d2.checkpoint.convert import detectron2_checkpoint
from gnws_d2.errors import CheckpointError

GN_WS = "Digits/mask_rcnn_R_18_FPN_gn_ws.yaml"
GN = "Digits/mask_rcnn_R_18_FPN_gn.yaml"
WHOLE = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}


def test_what_is_no_checkpoint_is_an_error(tmp_path):
    expanded = {"weight": torch.zeros(1).expand(10**6, 10**6), "bias": torch.zeros(2)}
    for content in (None, 1, [], torch.zeros(2), expanded, {1: torch.zeros(2)}, nn.Linear(3, 2)):
        torch.save(content, tmp_path / "file.pth")
        with pytest.raises(CheckpointError, match=r"file\.pth (holds no state|cannot be read)"):
            Checkpointer(nn.Linear(3, 2)).load(str(tmp_path / "file.pth"))
    (tmp_path / "link.pth").symlink_to(tmp_path / "none.pth")
    for name in ("none.pth", "link.pth", ""):
        with pytest.raises(CheckpointError, match=r"(does not exist\. Correct|is a folder\. N)"):
            Checkpointer(nn.Linear(3, 2)).load(str(tmp_path / name))


@pytest.mark.parametrize("size", [0, 10, 600, -20])
def test_a_damaged_file_is_named(tmp_path, size):
    file = tmp_path / "cut.pth"
    torch.save({"model": nn.Linear(30, 20).state_dict()}, file)
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"cut\.pth.*damaged"):
        Checkpointer(nn.Linear(30, 20)).load(str(file))


# Content, a part of the message, and whether Detectron2's heuristics would take what matches.
UNFIT = [
    ({"weight": torch.zeros(2, 3)}, r"1 missing: bias \(2,\)", True),
    ({**WHOLE, "more": torch.zeros(1)}, r"1 unexpected: more \(1,\)", True),
    ({**WHOLE, "weight": torch.zeros(2, 4)}, r"weight \(2, 4\) instead of \(2, 3", True),
]
UNFIT += [
    ({**WHOLE, "weight": value}, rf"odd\.pth.*: weight {message}", lenient)
    for value, message, lenient in (
        ("text", "is 'text', not a tensor", False),
        (torch.zeros(2, 3, device="meta"), r"is a .*_rebuild_meta_.*, not a tensor", False),
        (torch.full((2, 3), torch.nan), "has NaN or infinite values", False),
        (torch.tensor([[0.0, 0, 0], [0, 0, -torch.inf]]), "has NaN or infinite values", False),
        (torch.full((2, 3), torch.inf).bfloat16(), "has NaN or infinite values", False),
        (torch.zeros(2, 3, dtype=torch.complex64), "is complex64", False),
        (torch.zeros(2, 3, dtype=torch.int64), "is int64, but the model has floating", True),
        (torch.zeros(2, 3).to_sparse(), r"is a torch\._utils\._rebuild_sparse_tensor", False),
    )
]


@pytest.mark.parametrize(("tensors", "message", "lenient"), UNFIT)
@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
def test_what_does_not_fit_is_an_error_and_changes_nothing(tmp_path, tensors, message, lenient):
    file, model = tmp_path / "odd.pth", nn.Linear(3, 2)
    before = model.weight.clone()
    torch.save(tensors, file)
    for query in ("",) if lenient else ("", "?matching_heuristics=True"):
        with pytest.raises(CheckpointError, match=message):
            Checkpointer(model).load(f"{file}{query}")
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.module."])
def test_names_of_wrappers_and_older_versions_are_accepted(tmp_path, prefix):
    source, model = nn.Linear(3, 2), nn.Linear(3, 2)
    tensors = {f"{prefix}{name}": tensor for name, tensor in source.state_dict().items()}
    tensors[f"{prefix}pixel_mean"] = torch.zeros(3, 1, 1)
    torch.save({"model": tensors}, tmp_path / "ddp.pth")
    Checkpointer(model).load(str(tmp_path / "ddp.pth"))
    assert torch.equal(model.weight, source.weight)


def test_only_the_user_switches_strictness_off(tmp_path):
    source, model = nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    before = model[0].weight.clone()
    file = tmp_path / "lenient.pth"
    tensors = {"0.weight": source.weight.detach(), "x": torch.zeros(1)}
    torch.save({"model": tensors, "matching_heuristics": True}, file)
    for path in (str(file), f"{file}?matching_heuristics=False"):
        with pytest.raises(CheckpointError, match=r"3 missing: 0\.bias.*1 unexpected: x"):
            Checkpointer(model).load(path)
    assert torch.equal(model[0].weight, before)
    Checkpointer(model).load(f"{file}?matching_heuristics=True")
    assert torch.equal(model[0].weight, source.weight)
    # Detectron2's heuristics compare the ends of names.
    Checkpointer(source, str(tmp_path)).save("own")
    Checkpointer(model[:1]).load(f"{tmp_path}/own.pth?matching_heuristics=True")
    assert torch.equal(model[0].bias, source.bias)


@pytest.fixture
def trained(tiny_config, tmp_path):
    """``trained(config, *opts)``: a model of that config, its config, and a checkpoint of it."""

    def make(name=GN_WS, *opts):
        cfg = tiny_config(name, *opts)
        model = build_model(cfg)
        Checkpointer(model, str(tmp_path), cfg=cfg).save("trained")
        return model, cfg, str(tmp_path / "trained.pth")

    return make


def test_a_checkpoint_says_what_produced_it(trained, tmp_path):
    _, cfg, file = trained()
    provenance = Provenance.read(torch.load(file, weights_only=True))
    assert sorted(provenance.standardized) == ["backbone", "box_head", "fpn", "mask_head", "stem"]
    assert provenance.classes == list("0123456789") and provenance.input_format == "RGB"
    assert provenance.pixel_mean == cfg.MODEL.PIXEL_MEAN
    assert provenance.pixel_std == cfg.MODEL.PIXEL_STD
    (tmp_path / "config.yaml").write_text(provenance.config)
    restored = gnws_d2.load_config(tmp_path / "config.yaml")
    assert yaml.safe_load(restored.dump()) == yaml.safe_load(cfg.dump())
    assert provenance.versions["gnws_d2"] == gnws_d2.__version__
    assert provenance.versions["torch"] == torch.__version__


@pytest.mark.parametrize("value", [5, "x", None, [[1]], {"a": 1}, [None]])
def test_a_provenance_that_no_version_wrote_is_unknown(trained, value):
    model, cfg, file = trained()
    checkpoint = torch.load(file, weights_only=True)
    for stored in (dict.fromkeys(checkpoint["gnws_d2"], value), value):
        torch.save({**checkpoint, "gnws_d2": stored}, file)
        Checkpointer(model, cfg=cfg, for_inference=True).load(file)


@pytest.mark.parametrize(("first", "second"), [(GN, GN_WS), (GN_WS, GN)])
def test_weights_of_the_other_kind_are_refused(trained, tiny_config, first, second):
    _, _, file = trained(first)
    cfg = tiny_config(second)
    with pytest.raises(CheckpointError, match=r"with(out)? Weight Standardization of .*stem"):
        Checkpointer(build_model(cfg), cfg=cfg).load(file)


def test_other_classes_are_refused_or_the_predictors_are_remade(trained, tiny_config, caplog):
    source, _, file = trained()
    opts = ["MODEL.ROI_HEADS.NUM_CLASSES", "3"]
    cfg = tiny_config(GN_WS, *opts)
    with pytest.raises(CheckpointError, match=r"cls_score\.weight.*REMAKE_PREDICTORS True"):
        Checkpointer(build_model(cfg), cfg=cfg).load(file)

    cfg = tiny_config(GN_WS, *opts, "MODEL.REMAKE_PREDICTORS", "True")
    model = build_model(cfg)
    fresh = {n: t.clone() for n, t in model.state_dict().items()}
    Checkpointer(model, cfg=cfg).load(file)
    remade = ("roi_heads.box_predictor.", "roi_heads.mask_head.predictor.")
    for name, tensor in model.state_dict().items():
        expected = fresh if name.startswith(remade) else source.state_dict()
        assert torch.equal(tensor, expected[name]), name
    [line] = [r.getMessage() for r in caplog.records if "initial values" in r.getMessage()]
    for layer in ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_head.predictor"):
        assert f"roi_heads.{layer}" in line


def test_as_many_classes_of_other_names_are_warned_of(trained, tiny_config, caplog):
    source, cfg, file = trained()
    cfg.MODEL.REMAKE_PREDICTORS = True
    model = build_model(cfg)
    Checkpointer(model, cfg=cfg).load(file)  # the same: the key can stay set for --resume
    assert all(torch.equal(t, source.state_dict()[n]) for n, t in model.state_dict().items())
    MetadataCatalog.get("letters").thing_classes = list("abcdefghij")
    try:
        cfg = tiny_config(GN_WS, "DATASETS.TRAIN", "('letters',)")
        Checkpointer(source, cfg=cfg).load(file)
        assert "other classes (0, 1, 2 ...) than those of the dataset (a, b, c ...)" in caplog.text
        cfg.MODEL.REMAKE_PREDICTORS = True
        model = build_model(cfg)
        name = "roi_heads.box_predictor.cls_score.weight"
        fresh = model.state_dict()[name].clone()
        Checkpointer(model, cfg=cfg).load(file)
        assert torch.equal(model.state_dict()[name], fresh)
    finally:
        MetadataCatalog.remove("letters")


def test_a_bare_backbone_goes_where_the_model_has_it(tiny_config, tmp_path, caplog):
    """Detectron2's own does, too: see tests/model_zoo/test_fetch.py."""
    cfg = tiny_config(GN_WS)
    source = build_model(cfg).backbone.bottom_up.state_dict()
    provenance = Provenance.of(cfg, ["stem", "backbone"])
    file = tmp_path / "backbone.pth"
    torch.save(detectron2_checkpoint(source, provenance), file)
    caplog.set_level(logging.INFO)
    model = build_model(cfg)
    fpn = model.backbone.fpn_lateral2.weight.clone()
    Checkpointer(model).load(str(file))
    for name, tensor in model.backbone.bottom_up.state_dict().items():
        assert torch.equal(tensor, source[name])
    assert torch.equal(model.backbone.fpn_lateral2.weight, fpn)
    assert "is a backbone: fpn, rpn, box_head, box_predictor, mask_head keep" in caplog.text

    del source["res4.1.conv2.norm.bias"]
    torch.save(detectron2_checkpoint(source, provenance), file)
    with pytest.raises(
        CheckpointError, match=r"missing: backbone\.bottom_up\.res4\.1\.conv2\.norm"
    ):
        Checkpointer(build_model(cfg), cfg=cfg).load(str(file))


def test_a_save_that_fails_leaves_the_file_before_it(tmp_path, monkeypatch):
    model = nn.Linear(3, 2)
    checkpointer = Checkpointer(model, str(tmp_path))
    checkpointer.save("model")
    before = (tmp_path / "model.pth").read_bytes()

    def full(data, stream):
        stream.write(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc] unexpected pos: no space left")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"model\.pth cannot be written .*Make room"):
        checkpointer.save("model")
    assert (tmp_path / "model.pth").read_bytes() == before
    assert sorted(f.name for f in tmp_path.iterdir()) == ["last_checkpoint", "model.pth"]


def test_a_changed_byte_is_found(tmp_path):
    """In the weights and in the trainer's state, where torch.load finds nothing."""
    model = nn.Linear(64, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(64)).sum().backward()
    optimizer.step()
    Checkpointer(model, str(tmp_path), optimizer=optimizer).save("model")
    file = tmp_path / "model.pth"
    whole = file.read_bytes()
    momentum = optimizer.state[model.weight]["momentum_buffer"]
    for tensor in (model.weight.detach(), momentum):
        at = whole.index(tensor.numpy().tobytes()) + 1000
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        torch.load(file, weights_only=True)
        with pytest.raises(CheckpointError, match=r"model\.pth.*CRC-32.*damaged"):
            Checkpointer(nn.Linear(64, 64)).load(str(file))
    file.write_bytes(whole)
    Checkpointer(nn.Linear(64, 64)).load(str(file))


MASK_OFF = ["MODEL.MASK_ON", "False"]


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([], MASK_OFF, r"pth has a mask_head, and the model has none\. Set MODEL\.MASK_ON True"),
        (MASK_OFF, [], r"pth has no mask_head, and the model has one\. Set MODEL\.MASK_ON False"),
        (
            [],
            [*MASK_OFF, "MODEL.ROI_HEADS.NUM_CLASSES", "3"],
            r"has a mask_head, and .*; also, to train on other classes .*REMAKE_PREDICTORS True",
        ),
    ],
)
def test_a_head_too_many_or_too_few_is_named(trained, tiny_config, first, second, message):
    _, _, file = trained(GN_WS, *first)
    cfg = tiny_config(GN_WS, *second)
    with pytest.raises(CheckpointError, match=message) as caught:
        Checkpointer(build_model(cfg), cfg=cfg).load(file)
    assert len(str(caught.value)) - len(file) < 360  # the reason, not a list of tensors


def test_training_boxes_on_other_classes_leaves_the_mask_head_out(trained, tiny_config, caplog):
    source, _, file = trained()
    opts = [*MASK_OFF, "MODEL.ROI_HEADS.NUM_CLASSES", "3", "MODEL.REMAKE_PREDICTORS", "True"]
    cfg = tiny_config(GN_WS, *opts)
    model = build_model(cfg)
    Checkpointer(model, cfg=cfg).load(file)
    assert "has a mask_head, which the model lacks; it is left out" in caplog.text
    theirs = source.state_dict()
    for name, tensor in model.state_dict().items():
        remade = name.startswith("roi_heads.box_predictor.")
        assert remade or torch.equal(tensor, theirs[name]), name


def test_for_inference_nothing_keeps_its_initial_values(trained, tiny_config, tmp_path):
    model, cfg, file = trained()
    checkpointer = Checkpointer(model, cfg=cfg, for_inference=True)
    with pytest.raises(CheckpointError, match=r"MODEL\.WEIGHTS is empty"):
        checkpointer.load("")
    tensors = model.backbone.bottom_up.state_dict()
    provenance = Provenance.of(cfg, ["stem", "backbone"])
    torch.save(detectron2_checkpoint(tensors, provenance), tmp_path / "backbone.pth")
    with pytest.raises(CheckpointError, match=r"is a backbone alone: fpn, rpn.* untrained"):
        checkpointer.load(str(tmp_path / "backbone.pth"))
    # As in the config that a run on other classes saves.
    opts = ["MODEL.ROI_HEADS.NUM_CLASSES", "3", "MODEL.REMAKE_PREDICTORS", "True"]
    cfg = tiny_config(GN_WS, *opts)
    with pytest.raises(CheckpointError, match="cls_score"):
        Checkpointer(build_model(cfg), cfg=cfg, for_inference=True).load(file)
    checkpointer.load(file)
