"""MODEL_ZOO.md, the metafile and the README's table are those that the data file makes."""

import yaml

from gnws_d2.model_zoo.documents import documents, metafile
from gnws_d2.model_zoo.published import published


def test_the_documents_are_up_to_date():
    for file, text in documents().items():
        stale = f"{file.name} differs: run python -m gnws_d2.model_zoo document"
        assert file.read_text(encoding="utf-8") == text, stale


def test_the_metafile_is_in_the_form_of_the_model_index():
    index = yaml.safe_load(metafile())
    collections = {c["Name"] for c in index["Collections"]}
    detectors = [entry for entry in published() if not entry.is_backbone]
    assert [model["Name"] for model in index["Models"]] == [entry.name for entry in detectors]
    for model, entry in zip(index["Models"], detectors, strict=True):
        assert model["In Collection"] in collections and model["Weights"] == entry.url
        metrics = {k: v for r in model["Results"] for k, v in r["Metrics"].items()}
        expected = {"box AP": float(entry.box_ap)}
        if entry.mask_ap:
            expected["mask AP"] = float(entry.mask_ap)
        assert metrics == expected
