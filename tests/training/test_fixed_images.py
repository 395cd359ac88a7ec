"""The fixed images of the guard: the same features on any number of devices, and nothing disturbed."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import medfm
from medfm.data.dataset import StudyDataset
from medfm.errors import DataError
from medfm.registry import ENCODERS
from medfm.training.fixed_images import FixedImages, chosen, encode, prepare, split_patients
from medfm.transforms.config import PreprocessConfig
from medfm.transforms.preprocess import Preprocess

VIT = {"name": "vit", "img_size": [32, 32], "patch_size": [8, 8], "embed_dim": 16, "depth": 1, "num_heads": 2, "dropout": 0.5}

RESNET = {"name": "timm", "model": "resnet10t", "img_size": [32, 32], "in_channels": 1}


@pytest.fixture(scope="module")
def dataset(tiny_manifest: Path) -> StudyDataset:
    preprocess = Preprocess(PreprocessConfig.model_validate({"size": [32, 32], "window": "none"}))
    return StudyDataset(medfm.read_manifest(tiny_manifest), preprocess, split="train")


def _encode(dataset: StudyDataset, encoder: nn.Module, positions: list[int], count: int, world: int = 1) -> list[Tensor]:
    """What each of `world` devices gets; threads stand for devices."""
    meet = threading.Barrier(world)
    sent: list[Tensor] = [torch.empty(0)] * world

    def device(rank: int) -> Tensor:
        def all_gather(x: Tensor) -> Tensor:
            sent[rank] = x
            meet.wait(timeout=30)
            everyone = torch.stack(sent)
            meet.wait(timeout=30)
            return everyone

        (features,), rows = encode(
            [copy.deepcopy(encoder) if world > 1 else encoder],
            FixedImages(dataset, positions, rank, world, 1),
            count,
            lambda x: prepare(x, dataset.preprocess, (32, 32)),
            torch.device("cpu"),
            3,
            all_gather if world > 1 else None,
        )
        assert rows.tolist() == list(range(count))
        return features

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(device, range(world)))


def test_encode__is_the_same_on_three_devices(dataset: StudyDataset) -> None:
    torch.manual_seed(0)
    encoder = ENCODERS.build(ENCODERS.parse(VIT)).train()
    positions = chosen(dataset, 20, seed=0)
    (one,) = _encode(dataset, encoder, positions, 14)
    assert one.shape == (14, 16)
    for other in _encode(dataset, encoder, positions, 14, world=3):
        torch.testing.assert_close(other, one)
    alone = encoder.eval()(dataset.preprocess.to_float(dataset.image(positions[5])[None])).cls_token[0]
    torch.testing.assert_close(one[5], alone.detach())


def test_encode__changes_neither_modes_nor_averages_nor_generators(dataset: StudyDataset) -> None:
    encoder = ENCODERS.build(ENCODERS.parse(RESNET)).train()
    frozen = next(m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    generator = torch.get_rng_state()
    _encode(dataset, encoder, [0, 1, 2, 3], 4)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert not frozen.training
    assert sum(not m.training for m in encoder.modules()) == 1


def test_fixed_images__that_cannot_be_read_are_left_out(
    dataset: StudyDataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = StudyDataset.image

    def broken(self: StudyDataset, position: int, epoch: int = 0) -> Tensor:
        if position == 2:
            raise DataError("gone")
        return original(self, position, epoch)

    monkeypatch.setattr(StudyDataset, "image", broken)
    encoder = ENCODERS.build(ENCODERS.parse(VIT))
    (features,), rows = encode(
        [encoder],
        FixedImages(dataset, [0, 1, 2, 3], 0, 1, 1),
        4,
        lambda x: prepare(x, dataset.preprocess, None),
        torch.device("cpu"),
        8,
    )
    assert rows.tolist() == [0, 1, 3]
    assert features.shape == (3, 16)
    assert "1 of 4 images cannot be read" in caplog.text


def test_prepare__meets_the_encoders_size(dataset: StudyDataset) -> None:
    stored = torch.stack([dataset.image(0), dataset.image(1)])
    assert torch.equal(prepare(stored, dataset.preprocess, (32, 32)), dataset.preprocess.to_float(stored))
    assert prepare(stored, dataset.preprocess, (16, 24)).shape == (2, 1, 16, 24)
    volume = Preprocess(PreprocessConfig.model_validate({"size": [8, 8, 8], "window": "none"}))
    assert prepare(torch.zeros(1, 1, 8, 8, 8, dtype=torch.uint8), volume, (4, 4, 4)).shape == (1, 1, 4, 4, 4)


def test_chosen__labelled_first_and_the_same_again(dataset: StudyDataset) -> None:
    some = copy.copy(dataset)
    some.labels = dataset.labels.clone()
    some.labels[::2] = float("nan")
    positions = chosen(some, 20, seed=3)
    assert positions == chosen(some, 20, seed=3)
    assert positions != chosen(some, 20, seed=4)
    assert sorted(positions[:16]) == list(range(1, 32, 2))
    assert len(set(positions)) == 20


def test_split_patients__no_patient_on_both_sides() -> None:
    patients = torch.arange(30) // 3
    held = split_patients(patients, seed=0)
    assert len(held) == 9
    assert len(patients[held].unique()) == 3
    assert split_patients(patients, seed=1) != held
