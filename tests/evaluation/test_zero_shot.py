"""The classifier and its evaluation on a world with known answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from medfm.errors import ConfigError, DataError
from medfm.evaluation.scoring import Settings
from medfm.evaluation.zero_shot import ZeroShotClassifier, evaluate, patch_similarity
from medfm.io.load import load_image

PROMPTS = {"findings": {"Bright": {"label": "bright", "positive": ["bright"], "negative": ["dark"]}}}


class FixedModel:
    """Texts with given vectors, for arithmetic by hand."""

    def __init__(self, vectors: dict[str, list[float]]) -> None:
        self.vectors = vectors
        self.dual = type("Dual", (), {"logit_scale": torch.tensor(10.0).log()})()

    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor([self.vectors[text] for text in texts])


def test_probabilities__pair_is_the_softmax_over_two_cosines() -> None:
    model = FixedModel({"p": [1.0, 0.0], "n": [0.0, 1.0]})
    prompts = {"findings": {"F": {"positive": "p", "negative": "n"}}}
    image = torch.tensor([[0.6, 0.8]])
    expected = np.exp(0.6) / (np.exp(0.6) + np.exp(0.8))
    assert ZeroShotClassifier(model, prompts).probabilities(image)[0, 0] == pytest.approx(expected)
    scaled = np.exp(6.0) / (np.exp(6.0) + np.exp(8.0))
    assert ZeroShotClassifier(model, prompts, temperature="model").probabilities(image)[0, 0] == pytest.approx(scaled)


def test_probabilities__an_ensemble_is_averaged_then_normalised() -> None:
    model = FixedModel({"p": [1.0, 0.0], "q": [0.0, 1.0], "n": [-1.0, 0.0]})
    classifier = ZeroShotClassifier(model, {"findings": {"F": {"positive": ["p", "q"], "negative": "n"}}})
    np.testing.assert_allclose(classifier.positive.numpy(), [[0.5**0.5, 0.5**0.5]])
    expected = 1 / (1 + np.exp(-1.0 - 0.5**0.5))
    assert classifier.probabilities(torch.tensor([[1.0, 0.0]]))[0, 0] == pytest.approx(expected)


def test_probabilities__multiclass_rows_sum_to_one() -> None:
    model = FixedModel({"a": [1.0, 0.0], "b": [0.0, 1.0], "c": [-1.0, 0.0]})
    content = {"method": "multiclass", "findings": {name: {"positive": name} for name in "abc"}}
    values = ZeroShotClassifier(model, content).probabilities(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    np.testing.assert_allclose(values.sum(axis=1), 1.0)
    np.testing.assert_allclose(values[0], np.exp([1, 0, -1]) / np.exp([1, 0, -1]).sum())


def test_classifier__refuses_a_method_its_prompts_cannot_serve(brightness: Any) -> None:
    with pytest.raises(ConfigError, match="multiclass needs at least two"):
        ZeroShotClassifier(brightness, PROMPTS, method="multiclass")


def test_predict__paths_images_and_tensors_agree(brightness: Any, pictures: pd.DataFrame) -> None:
    root = Path(pictures.attrs["root"])
    paths = [root / name for name in pictures["image"][:5]]
    classifier = ZeroShotClassifier(brightness, PROMPTS)
    by_path = classifier.predict(paths, batch_size=2)
    assert list(by_path.columns) == ["Bright"]
    assert by_path.index.tolist() == [str(path) for path in paths]
    images = [load_image(path) for path in paths]
    by_image = classifier.predict(images)
    by_tensor = classifier.predict(torch.from_numpy(np.stack([brightness.preprocess(image) for image in images])))
    np.testing.assert_allclose(by_image.to_numpy(), by_path.to_numpy())
    np.testing.assert_allclose(by_tensor.to_numpy(), by_path.to_numpy())
    assert by_image.index.tolist() == list(range(5))
    assert classifier.predict(str(paths[0])).iloc[0, 0] == by_path.iloc[0, 0]
    order = np.argsort(pictures["level"][:5].to_numpy())
    assert (np.argsort(by_path["Bright"].to_numpy()) == order).all()


def test_similarity_map__is_high_where_the_finding_is(brightness: Any, tmp_path: Path) -> None:
    from PIL import Image as Pillow

    picture = np.full((16, 16), 30, dtype=np.uint8)
    picture[10:14, 2:6] = 250  # rows 10-13, columns 2-5
    Pillow.fromarray(picture).save(tmp_path / "spot.png")
    image, heat = ZeroShotClassifier(brightness, PROMPTS).similarity_map(tmp_path / "spot.png", "Bright")
    assert image.shape == heat.shape == (16, 16)
    np.testing.assert_allclose(image, picture / 255)
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert 8 <= row < 16
    assert 0 <= column < 8
    with pytest.raises(ConfigError, match="has no finding 'Brigth'; did you mean 'Bright'"):
        ZeroShotClassifier(brightness, PROMPTS).similarity_map(tmp_path / "spot.png", "Brigth")


def test_patch_similarity__a_flat_image_gives_its_cosine_everywhere(brightness: Any) -> None:
    images = torch.full((2, 1, 16, 16), 255, dtype=torch.uint8)
    images[1] = 0
    maps = patch_similarity(brightness, images, torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(maps, torch.stack([torch.ones(16, 16), torch.zeros(16, 16)]).double())


def test_evaluate__is_the_auroc_of_what_the_model_measures(brightness: Any, manifest: Any) -> None:
    done = evaluate(
        ZeroShotClassifier(brightness, PROMPTS), manifest, settings=Settings(bootstrap=100), baseline=brightness.random_like(0)
    )
    test = manifest.frame[manifest.frame["split"] == "test"]
    entry = done.result["findings"][0]
    assert entry["auroc"]["value"] == pytest.approx(roc_auc_score(test["label:bright"], test["level"]))
    assert entry["random"]["auroc"]["value"] == 0.5
    assert done.result["images"] == 32
    assert done.result["patients"] == entry["patients"] == 16
    assert done.result["val_images"] == 16
    assert done.rows.tolist() == test.index.tolist()
    assert entry["accuracy"]["value"] > 0.7


def test_evaluate__row_numbers_are_the_manifests_own(brightness: Any, manifest: Any) -> None:
    manifest.frame = manifest.frame.drop(index=[0, 5, 40])
    done = evaluate(ZeroShotClassifier(brightness, PROMPTS), manifest, settings=Settings(bootstrap=0))
    assert done.rows.tolist() == [i for i in range(32) if i not in (0, 5)]
    assert done.val_rows.tolist() == [i for i in range(32, 48) if i != 40]


def test_evaluate__worker_processes_change_nothing(brightness: Any, manifest: Any) -> None:
    classifier = ZeroShotClassifier(brightness, PROMPTS)
    alone = evaluate(classifier, manifest, settings=Settings(bootstrap=0), batch_size=7)
    helped = evaluate(classifier, manifest, settings=Settings(bootstrap=0), batch_size=7, workers=2)
    np.testing.assert_array_equal(alone.probabilities, helped.probabilities)


def test_evaluate__an_unreadable_image_stops_or_is_counted(brightness: Any, manifest: Any, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in manifest.frame["image"]:
        (tmp_path / name).write_bytes((manifest.root / name).read_bytes())
    (tmp_path / "images/03.png").write_bytes(b"not a picture")
    manifest.root = tmp_path
    classifier = ZeroShotClassifier(brightness, PROMPTS)
    with pytest.raises(DataError, match=r"images/03\.png.*on_error=skip"):
        evaluate(classifier, manifest, settings=Settings(bootstrap=0))
    done = evaluate(classifier, manifest, settings=Settings(bootstrap=0), on_error="skip")
    assert done.result["images"] == 31
    assert done.result["unreadable"]["count"] == 1
    assert done.result["unreadable"]["first"] == [{"row": 3, "kind": "DataError"}]
    assert 3 not in done.rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.assign(split="train"), r"no rows of split 'test'; it has: train"),
        (lambda frame: frame.assign(**{"label:bright": np.nan}), r"no image of split 'test' is labelled for any of: Bright"),
        (lambda frame: frame.assign(**{"label:bright": "yes"}), r"column 'label:bright' holds something other than"),
    ],
)
def test_evaluate__says_why_a_manifest_cannot_be_scored(brightness: Any, manifest: Any, change: Any, message: str) -> None:
    manifest.frame = change(manifest.frame)
    with pytest.raises(DataError, match=message):
        evaluate(ZeroShotClassifier(brightness, PROMPTS), manifest)


def test_score__is_a_table_a_row_a_finding(brightness: Any, manifest: Any) -> None:
    table = ZeroShotClassifier(brightness, PROMPTS).score(manifest, bootstrap=50)
    assert table.index.tolist() == ["Bright", "mean"]
    test = manifest.frame[manifest.frame["split"] == "test"]
    assert table.loc["Bright", "auroc"] == pytest.approx(roc_auc_score(test["label:bright"], test["level"]))
    assert table.loc["Bright", "auroc_low"] <= table.loc["Bright", "auroc"] <= table.loc["Bright", "auroc_high"]
    assert table.attrs["left_out"] == []


def test_similarity_map__of_a_volume() -> None:
    volume = np.zeros((1, 4, 8, 8), dtype=np.uint8)
    volume[0, 3] = 200

    class Dual:
        logit_scale = torch.tensor(0.0)
        token_centre = None

        def image_tokens(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
            tokens = torch.tensor([0.0, 1.0]).repeat(1, 4 * 2 * 2, 1)
            tokens[0, 13] = torch.tensor([1.0, 0.0])  # slice 3, upper row, right column
            return tokens, (4, 2, 2)

    class Contract:
        def __call__(self, image: Any) -> np.ndarray:
            return volume

        def to_unit(self, batch: torch.Tensor) -> torch.Tensor:
            return batch.float() / 255

        def to_float(self, batch: torch.Tensor) -> torch.Tensor:
            return batch.float()

    model = FixedModel({"p": [1.0, 0.0], "n": [0.0, 1.0]})
    model.dual, model.preprocess, model.device = Dual(), Contract(), torch.device("cpu")
    classifier = ZeroShotClassifier(model, {"findings": {"F": {"positive": "p", "negative": "n"}}})
    picture, heat = classifier.similarity_map(object(), "F")
    np.testing.assert_allclose(picture, volume[0] / 255, rtol=1e-6)
    place, row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert heat.shape == (4, 8, 8)
    assert place == 3
    assert row < 4 <= column
