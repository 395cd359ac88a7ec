"""A small world with known answers: bright and dark pictures, a model that measures brightness, and a real tiny model."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image as Pillow

SIDE = 16


VOID = ("meta", "img", "br", "line", "circle")


class Page(HTMLParser):
    """Text, image sources and outside references of a page; balanced tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.images: list[str] = []
        self.outside: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        values = dict(attrs)
        self.images += [values["src"]] if tag == "img" else []
        self.outside += [v for k, v in values.items() if k in ("src", "href") and v and not v.startswith("data:image/")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


@pytest.fixture
def page_of() -> Callable[[Path], Page]:
    """Reads a card."""
    return lambda path: Page(path.read_text(encoding="utf-8"))


class _Tokens:
    """Stands for `DualEncoder`: each 4 x 4 patch is embedded as the whole image is."""

    embed_dim = 2
    token_centre = None

    def __init__(self) -> None:
        self.logit_scale = torch.tensor(math.log(10.0))

    def parameters(self) -> list[torch.Tensor]:
        return [self.logit_scale]

    def image_tokens(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
        patches = torch.nn.functional.avg_pool2d(x, 4)
        return direction(patches.flatten(1)), tuple(patches.shape[2:])


class _Contract:
    """Stands for `Preprocess`: 8-bit grey at SIDE pixels."""

    config = SimpleNamespace(size=(SIDE, SIDE))

    def __call__(self, image: Any) -> np.ndarray:
        return np.ascontiguousarray(image.array[..., 0].T[None].astype(np.uint8))

    def load(self, path: str | Path, modality: str = "") -> Any:
        from medfm.io.load import load_image

        return load_image(path, modality)

    def to_unit(self, batch: torch.Tensor) -> torch.Tensor:
        return batch.float() / 255

    to_float = to_unit

    def hash(self) -> str:
        return "0123456789ab"


def direction(level: torch.Tensor) -> torch.Tensor:
    """Brightness in [0, 1] as a unit vector: 0 is (1, 0), 1 is (0, 1)."""
    angle = level.double() * math.pi / 2
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


class BrightnessModel:
    """The interface of `medfm.weights.model.Model` with planted answers. Random weights (`random_like`) see nothing."""

    def __init__(self, blind: bool = False) -> None:
        self.dual = self.network = _Tokens()
        self.preprocess, self.blind = _Contract(), blind
        self.device = torch.device("cpu")
        self.card: dict[str, Any] = {"text_kind": "report", "data_cards": ["pictures"]}

    def encode_images(self, images: Any, batch_size: int = 64) -> torch.Tensor:
        if not isinstance(images, torch.Tensor):
            from medfm.io.load import load_image

            arrays = [self.preprocess(load_image(i) if isinstance(i, str | Path) else i) for i in images]
            images = torch.from_numpy(np.stack(arrays))
        level = images.double().mean(dim=(1, 2, 3)) / 255
        return direction(torch.zeros_like(level) if self.blind else level).float()

    def encode_texts(self, texts: list[str], batch_size: int = 64) -> torch.Tensor:
        return direction(torch.tensor([float("bright" in text) for text in texts])).float()

    def random_like(self, seed: int) -> BrightnessModel:
        return BrightnessModel(blind=True)


@pytest.fixture
def brightness() -> BrightnessModel:
    return BrightnessModel()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """48 PNGs of 24 patients, two each, of known brightness; `.attrs['root']` is their folder.

    Splits test (16 patients) and val (8). `label:bright` is right but for some noise, the reports say what is seen.
    """
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(48):
        patient = number // 2
        level = int(rng.integers(40, 215))
        picture = np.clip(rng.normal(level, 8, size=(SIDE, SIDE)), 0, 255).astype(np.uint8)
        name = f"images/{number:02d}.png"
        (root / "images").mkdir(exist_ok=True)
        Pillow.fromarray(picture).save(root / name)
        bright = float(level + rng.normal(0, 25) > 128)
        rows.append(
            {
                "image": name,
                "patient_id": f"SECRET{patient:03d}",
                "study_id": f"s{number}",
                "view": "PA",
                "modality": "CR",
                "split": "test" if patient < 16 else "val",
                "report": f"CONFIDENTIAL {'bright' if bright else 'dark'} field number {number % 20}.",
                "sex": "",
                "age": float("nan"),
                "mask": "",
                "label:bright": bright,
                "level": float(picture.mean()),
            }
        )
    frame = pd.DataFrame(rows)
    frame.attrs["root"] = str(root)
    return frame


@pytest.fixture
def manifest(pictures: pd.DataFrame) -> Any:
    from medfm.data.manifest import Manifest

    meta = {"card": "pictures", "text_kind": "report", "licence": "CC0"}
    return Manifest(pictures.copy(), Path(pictures.attrs["root"]), meta)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, save_tiny_model: Callable[..., None]) -> Path:
    """A run folder with a real, untrained dual encoder for pictures of SIDE pixels."""
    folder = tmp_path_factory.mktemp("tiny_run")
    save_tiny_model(folder, SIDE, seed=1, text_kind="label sentences", data_cards=["phantom"], licence="CC0")
    return folder


@pytest.fixture
def manifest_file(manifest: Any, tmp_path: Path) -> Path:
    """`manifest` on disk."""
    from medfm.data.manifest import write_manifest

    write_manifest(manifest, tmp_path / "manifest.parquet")
    return tmp_path / "manifest.parquet"


class DensityModel:
    """The interface of `Model`: a patch's vector turns from (1, 0) to (0, 1) as it gets brighter; "bright" asks for (0, 1)."""

    def __init__(self, patch: tuple[int, ...], **preprocess: Any) -> None:
        from medfm.transforms.config import PreprocessConfig
        from medfm.transforms.preprocess import Preprocess

        self.preprocess = Preprocess(PreprocessConfig(**preprocess))
        self.patch, self.device = patch, torch.device("cpu")
        self.dual = SimpleNamespace(image_tokens=self.image_tokens, encode_image=self.encode_image, token_centre=None)

    def image_tokens(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
        pool = torch.nn.functional.avg_pool3d if x.ndim == 5 else torch.nn.functional.avg_pool2d
        level = pool(x * 0.25 + 0.5, self.patch)[:, 0]
        angle = level.flatten(1) * torch.pi / 2
        return torch.stack([angle.cos(), angle.sin()], -1), tuple(level.shape[1:])

    def encode_image(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(self.image_tokens(x)[0].mean(1), dim=-1)

    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor([[0.0, 1.0] if "bright" in text else [1.0, 0.0] for text in texts])


@pytest.fixture(scope="session")
def density() -> type[DensityModel]:
    """A model of pictures or volumes whose patches are as bright as what they show."""
    return DensityModel


@pytest.fixture(scope="session")
def ct_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a real, untrained dual encoder for CTs of 16 x 20 x 20 voxels of 4 mm."""
    from medfm.encoders.build import build_dual, build_tokenizer
    from medfm.encoders.config import DualConfig
    from medfm.registry import ENCODERS
    from medfm.weights.save import save_model

    folder, size = tmp_path_factory.mktemp("ct_run"), [16, 20, 20]
    encoder = {"name": "vit", "img_size": size, "patch_size": [4, 4, 4], "embed_dim": 16, "depth": 1, "num_heads": 2}
    text = {"name": "clip_text", "embed_dim": 16, "depth": 1, "num_heads": 2, "context_length": 24}
    objective = {"text_encoder": text, "tokenizer": {"name": "clip", "context_length": 24}, "embed_dim": 8}
    config = DualConfig.model_validate(objective)
    tokenizer = build_tokenizer(config.tokenizer)
    torch.manual_seed(0)
    dual = build_dual(ENCODERS.parse(encoder), config, tokenizer)
    preprocess = {"size": size, "spacing": [4, 4, 4], "window": "hu", "dtype": "int16", "modalities": ["CT"]}
    save_model(folder, dual, {"encoder": encoder, "objective": objective, "preprocess": preprocess}, tokenizer, {})
    return folder
