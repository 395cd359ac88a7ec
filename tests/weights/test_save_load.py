"""A weight file is self-contained, strict, offline, and never a pickle."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from medfm.encoders.build import build_dual
from medfm.encoders.config import ClipTextConfig, DualConfig
from medfm.encoders.dual import DualEncoder
from medfm.encoders.image import ImageModel
from medfm.encoders.positions import resample_positions, stretch_positions
from medfm.encoders.text import ClipTextEncoder
from medfm.errors import DataError, WeightsError
from medfm.objectives.config import ContrastiveConfig
from medfm.registry import ENCODERS, TOKENIZERS
from medfm.types import Image
from medfm.weights.load import load_model, load_tensors_into, read_card
from medfm.weights.model import Model
from medfm.weights.save import _without_folders, save_model

TEXTS = ["small left effusion", "no effusion"]


def recipe(**changes: Any) -> dict[str, Any]:
    """A resolved recipe as the trainer hands it over: plain values."""
    size = changes.pop("size", [32, 48])
    objective = {
        "name": "contrastive",
        "text_encoder": {"name": "clip_text", "embed_dim": 32, "depth": 1, "num_heads": 2},
        "tokenizer": {"name": "clip", "context_length": 16},
        "loss": "infonce",
        "embed_dim": 24,
        "projection": "linear",
        "temperature": 0.07,
        "learn_temperature": True,
        "logit_bias": -10.0,
        "tile": 512,
    }
    encoder = {
        "name": "vit",
        "img_size": size,
        "patch_size": [8, 8],
        "embed_dim": 48,
        "depth": 2,
        "num_heads": 2,
        "weights": None,
    }
    return {
        "name": "test",
        "seed": 3,
        "encoder": {**encoder, **changes.pop("encoder", {})},
        "objective": {**objective, **changes.pop("objective", {})},
        "preprocess": {"size": size, "dtype": "uint8", "mean": [0.4], "std": [0.3], **changes.pop("preprocess", {})},
        **changes,
    }


def build(config: dict[str, Any], seed: int = 0) -> tuple[DualEncoder, Any]:
    torch.manual_seed(seed)
    kept = DualConfig(**{k: v for k, v in config["objective"].items() if k in DualConfig.model_fields})
    tokenizer = TOKENIZERS.build(kept.tokenizer)
    return build_dual(ENCODERS.parse(config["encoder"]), kept, tokenizer).eval(), tokenizer


def write(folder: Path, seed: int = 0, **changes: Any) -> tuple[Path, DualEncoder]:
    config = recipe(**changes)
    dual, tokenizer = build(config, seed)
    path = save_model(folder / "model.safetensors", dual, config, tokenizer, {"text_kind": "report", "data_cards": ["phantom"]})
    return path, dual


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def stored_images(n: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (n, 1, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_roundtrip__same_vectors_offline(tmp_path: Path, offline: None) -> None:
    path, dual = write(tmp_path)
    for source in (path, tmp_path, str(tmp_path)):
        model = load_model(source)
        images = stored_images()
        floats = (images.float() / 255 - 0.4) / 0.3
        with torch.no_grad():
            torch.testing.assert_close(model.encode_images(images), dual.encode_image(floats))
            torch.testing.assert_close(model.encode_texts(TEXTS), dual.encode_text(*model.tokenizer(TEXTS)))
        assert not model.dual.training
        assert not any(p.requires_grad for p in model.dual.parameters())
    assert "vit + clip_text" in repr(model)


def test_roundtrip__keeps_what_heat_maps_read(tmp_path: Path) -> None:
    config = recipe()
    for terms, dense in (((), "values"), (("hard_negatives",), "values"), (("hard_negatives", "filip"), "patches")):
        objective = ContrastiveConfig(**config["objective"], terms=terms)
        tokenizer = TOKENIZERS.build(objective.tokenizer)
        torch.manual_seed(0)
        network = build_dual(ENCODERS.parse(config["encoder"]), objective, tokenizer)
        saved = {**config, "objective": objective.model_dump(mode="json")}
        model = load_model(save_model(tmp_path / f"{dense}{len(terms)}", network, saved, tokenizer))
        assert model.dual.dense == model.random_like(1).dual.dense == dense
    former = {k: v for k, v in model.card["dual"].items() if k != "dense"}  # a file of an earlier version
    assert DualConfig.model_validate(former).dense == "values"


def test_roundtrip__every_tensor_exactly(tmp_path: Path) -> None:
    path, dual = write(tmp_path, objective={"loss": "sigmoid", "learn_temperature": False, "projection": "mlp"})
    loaded = load_model(path).dual.state_dict()
    assert loaded.keys() == dual.state_dict().keys()
    assert {"logit_scale", "logit_bias", "image_projection.2.bias"} <= loaded.keys()
    for name, tensor in dual.state_dict().items():
        assert torch.equal(loaded[name], tensor), name


def test_roundtrip__timm_encoder_with_batch_statistics(tmp_path: Path, offline: None) -> None:
    encoder = {"name": "timm", "model": "resnet10t", "img_size": [32, 64], "in_channels": 1, "weights": None}
    config = recipe(size=[32, 64])
    config["encoder"] = encoder
    dual, tokenizer = build(config)
    dual.train()
    dual.image_encoder(torch.randn(4, 1, 32, 64) * 3)  # moves the running statistics
    dual.eval()
    # The file training started from is not needed to use the model.
    config["encoder"] = {**encoder, "weights": "/gone/resnet.pth"}
    model = load_model(save_model(tmp_path, dual, config, tokenizer))
    images = torch.cat([stored_images(), stored_images()[..., :16]], dim=-1)
    with torch.no_grad():
        expected = dual.encode_image((images.float() / 255 - 0.4) / 0.3)
    torch.testing.assert_close(model.encode_images(images), expected)


def test_roundtrip__hugging_face_text_without_its_folder(tmp_path: Path, minilm: Path, offline: None) -> None:
    import shutil

    gone = tmp_path / "hf"
    shutil.copytree(minilm, gone)
    path, dual = write(
        tmp_path,
        objective={
            "text_encoder": {"name": "hf_text", "path": str(gone), "freeze_layers": 2},
            "tokenizer": {"name": "hf", "path": str(gone), "context_length": 32},
        },
    )
    shutil.rmtree(gone)
    model = load_model(path)
    with torch.no_grad():
        expected = dual.encode_text(*model.tokenizer(TEXTS))
    torch.testing.assert_close(model.encode_texts(TEXTS), expected)
    assert model.random_like(0).encode_texts(TEXTS).shape == (2, 24)


def test_card__says_what_the_file_is(tmp_path: Path) -> None:
    path, _ = write(tmp_path, plugins=[])
    card = read_card(tmp_path)
    assert card["text_kind"] == "report"
    assert card["data_cards"] == ["phantom"]
    assert card["preprocess"]["mean"] == [0.4]
    assert card["recipe"]["seed"] == 3
    assert card["format"] == 1
    assert "tile" not in card["dual"]
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["format"] == "pt"  # other tools read the tensors
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_card__tells_no_folders(tmp_path: Path) -> None:
    data = {"manifest": "/srv/hospital/ward7/manifest.parquet", "root": None, "views": ["PA"]}
    path, _ = write(tmp_path, data=data, out=tmp_path / "run")
    card = read_card(path)
    assert card["recipe"]["data"] == {"manifest": "manifest.parquet", "root": None, "views": ["PA"]}
    assert card["recipe"]["out"] == "run"
    assert "hospital" not in json.dumps(card)
    assert str(tmp_path) not in json.dumps(card)


def test_save__compiled_names_are_plain(tmp_path: Path) -> None:
    config = recipe()
    dual, tokenizer = build(config)
    dual.image_encoder = torch.compile(dual.image_encoder)  # never run: only its names matter
    path = save_model(tmp_path, dual, config, tokenizer)
    assert not any("_orig_mod" in name for name in load_file(path))
    load_model(path)


def test_save__failure_leaves_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, dual = write(tmp_path)
    before = path.read_bytes()

    def full_disk(tensors: Any, filename: Path, metadata: Any) -> None:
        Path(filename).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    config = recipe()
    with pytest.raises(OSError, match="No space"):
        save_model(path, dual, config, TOKENIZERS.build(DualConfig().tokenizer))
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_load__missing_truncated_pickled_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        load_model(tmp_path / "none.safetensors")
    with pytest.raises(WeightsError, match=r"holds no model\.safetensors"):
        load_model(tmp_path)
    path, _ = write(tmp_path)
    whole = path.read_bytes()
    for cut in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(WeightsError, match=r"model\.safetensors: not a whole safetensors file"):
            load_model(path)
    torch.save({"a": torch.ones(1)}, tmp_path / "model.ckpt")
    with pytest.raises(WeightsError, match="pickle can run code"):
        load_model(tmp_path / "model.ckpt")
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"not written by medfm.*encoder\.weights"):
        load_model(tmp_path / "other.safetensors")


def rewrite(path: Path, card: dict[str, Any] | None = None, tensors: dict[str, torch.Tensor] | None = None) -> None:
    content, card = load_file(path), card or read_card(path)
    save_file(tensors or content, path, metadata={"medfm": json.dumps(card)})


def test_load__a_tensor_too_few_too_many_or_of_another_shape(tmp_path: Path) -> None:
    path, _ = write(tmp_path)
    tensors, name = load_file(path), "image_encoder.blocks.1.mlp.fc1.weight"
    rewrite(path, tensors={k: v for k, v in tensors.items() if k != name})
    with pytest.raises(WeightsError, match=f"not in the file: {name}"):
        load_model(path)
    rewrite(path, card=read_card(path), tensors={**tensors, "stray": torch.ones(2)})
    with pytest.raises(WeightsError, match="no place in the model: stray"):
        load_model(path)
    rewrite(path, tensors={**tensors, name: tensors[name][:5].clone()})
    with pytest.raises(
        WeightsError, match=r"other shapes: image_encoder\.blocks\.1\.mlp\.fc1\.weight \(5, 48\) for \(192, 48\)"
    ):
        load_model(path)


def test_load__of_a_newer_or_unknown_make(tmp_path: Path) -> None:
    path, _ = write(tmp_path)
    card = read_card(path)
    rewrite(path, {**card, "format": 99, "medfm_version": "9.0"})
    with pytest.raises(WeightsError, match=r"written by medfm 9\.0, newer than this one; upgrade"):
        load_model(path)
    rewrite(path, {**card, "encoder": {"name": "my_net"}, "recipe": {"plugins": ["my_lab.ext"]}})
    with pytest.raises(WeightsError, match=r"unknown encoder 'my_net'.*import the plugins .*my_lab\.ext"):
        load_model(path)
    rewrite(path, {k: v for k, v in card.items() if k != "format"})
    with pytest.raises(WeightsError, match="metadata cannot be read"):
        load_model(path)
    rewrite(path, {k: v for k, v in card.items() if k != "dual"})
    with pytest.raises(WeightsError, match="does not fit this one: 'dual'"):
        load_model(path)
    rewrite(path, {**card, "preprocess": {**card["preprocess"], "gamma": 2}})
    with pytest.raises(WeightsError, match="gamma"):
        load_model(path)


def test_init__same_architecture_copies_everything(tmp_path: Path) -> None:
    path, source = write(tmp_path, seed=1)
    target, _ = build(recipe(), seed=2)
    report = load_tensors_into(target, path)
    assert set(report.loaded) == set(source.state_dict())
    assert report.missing == report.unused == report.resampled == ()
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor)


def test_init__positions_follow_the_image_size(tmp_path: Path) -> None:
    path, source = write(tmp_path, encoder={"reg_tokens": 2})
    target, _ = build(
        recipe(size=[48, 40], encoder={"reg_tokens": 2}, objective={"tokenizer": {"name": "clip", "context_length": 8}}), 2
    )
    report = load_tensors_into(target, path)
    assert set(report.resampled) == {"image_encoder.pos_embed", "text_encoder.positional_embedding"}
    expected = resample_positions(source.image_encoder.pos_embed, (4, 6), (6, 5), 3)
    torch.testing.assert_close(target.image_encoder.pos_embed, expected)
    torch.testing.assert_close(target.text_encoder.positional_embedding, source.text_encoder.positional_embedding[:8])


def test_init__positions_of_a_turned_grid_are_resampled(tmp_path: Path) -> None:
    """As many patches, laid out otherwise: the tensors have one shape."""
    path, source = write(tmp_path)
    target, _ = build(recipe(size=[48, 32]), 2)
    assert target.image_encoder.pos_embed.shape == source.image_encoder.pos_embed.shape
    report = load_tensors_into(target, path)
    assert report.resampled == ("image_encoder.pos_embed",)
    prefix = source.image_encoder.pos_prefix
    expected = resample_positions(source.image_encoder.pos_embed, (4, 6), (6, 4), prefix)
    torch.testing.assert_close(target.image_encoder.pos_embed, expected)


def test_init__another_shape_is_named_and_can_be_allowed(tmp_path: Path) -> None:
    path, source = write(tmp_path)
    target, _ = build(recipe(objective={"embed_dim": 16}), seed=2)
    with pytest.raises(WeightsError, match=r"image_projection\.weight \(24, 48\) for \(16, 48\)"):
        load_tensors_into(target, path)
    before = target.image_projection.weight.clone()
    report = load_tensors_into(target, path, allow=["*_projection.weight"])
    assert set(report.missing) == {"image_projection.weight", "text_projection.weight"}
    assert torch.equal(target.image_projection.weight, before)
    assert torch.equal(target.image_encoder.cls_token, source.image_encoder.cls_token)


def test_init__text_encoder_may_be_another_if_asked(tmp_path: Path) -> None:
    path, _ = write(tmp_path)
    other = {"name": "clip_text", "embed_dim": 32, "depth": 2, "num_heads": 2}
    target, _ = build(recipe(objective={"text_encoder": other}), seed=2)
    with pytest.raises(WeightsError, match=r"tensors are not in the file: text_encoder\.transformer\.resblocks\.1"):
        load_tensors_into(target, path)
    report = load_tensors_into(target, path, allow=["text_encoder.*"])
    assert all(name.startswith("text_encoder.transformer.resblocks.1.") for name in report.missing)


def film(value: float) -> Image:
    """A uniform 8-bit picture, 96 columns by 64 rows, with a bright square at its right lower corner."""
    array = np.full((96, 64, 1), value, np.uint8)
    array[72:, 48:] = 250
    return Image(array=array, affine=np.eye(4), modality="OT", intensity_units="display", source="made here")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(write(tmp_path_factory.mktemp("run"), preprocess={"window": "none"})[0])


def test_model__images_paths_and_tensors_agree(model: Model, tmp_path: Path) -> None:
    from PIL import Image as Picture

    images = [film(10.0), film(90.0)]
    paths = []
    for i, image in enumerate(images):
        paths.append(tmp_path / f"{i}.png")
        Picture.fromarray(image.array[:, :, 0].T).save(paths[-1])
    stored = np.stack([model.preprocess(image) for image in images])
    assert stored.shape == (2, 1, 32, 48)
    assert stored[0, 0, -1, -1] == 250
    vectors = model.encode_images(images)
    torch.testing.assert_close(vectors, model.encode_images(stored))
    torch.testing.assert_close(vectors, model.encode_images(torch.from_numpy(stored), batch_size=1))
    torch.testing.assert_close(vectors, model.encode_images(paths))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    assert not vectors.requires_grad
    assert model.encode_images([]).shape == (0, 24)
    assert model.encode_texts([]).shape == (0, 24)


def test_model__text_batches_agree(model: Model) -> None:
    torch.testing.assert_close(model.encode_texts(TEXTS, batch_size=1), model.encode_texts(TEXTS), rtol=1e-5, atol=1e-6)


def test_model__unfit_tensors_are_refused(model: Model) -> None:
    with pytest.raises(DataError, match=r"torch\.uint8 of shape \(N, 1, 32, 48\)"):
        model.encode_images(torch.zeros(2, 1, 32, 48))
    with pytest.raises(DataError, match=r"got torch\.uint8 of shape \(2, 1, 48, 32\)"):
        model.encode_images(torch.zeros(2, 1, 48, 32, dtype=torch.uint8))


def test_model__similarity_map_is_the_patches_cosine(model: Model) -> None:
    image = model.preprocess(film(10.0))
    shown = model.similarity_map(image, "effusion")
    assert shown.shape == (32, 48)
    assert shown.dtype == np.float32
    text = model.encode_texts(["effusion"])[0]
    with torch.no_grad():
        tokens, grid = model.dual.image_tokens(model.preprocess.to_float(torch.from_numpy(image)[None]))
    cosines = (tokens[0] @ text).reshape(grid)
    # Bilinear enlargement by 8 keeps the corners, and the value between the four middle pixels of a patch.
    assert shown[0, 0] == pytest.approx(float(cosines[0, 0]), abs=1e-5)
    assert shown[-1, -1] == pytest.approx(float(cosines[-1, -1]), abs=1e-5)
    assert shown[11:13, 19:21].mean() == pytest.approx(float(cosines[1, 2]), abs=0.02)
    np.testing.assert_allclose(model.similarity_map(film(10.0), ["effusion"]), shown, atol=1e-6)


def test_model__random_like_has_the_architecture_and_other_weights(model: Model) -> None:
    state = torch.random.get_rng_state()
    one, same, other = model.random_like(7), model.random_like(7), model.random_like(8)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert one.dual.state_dict().keys() == model.dual.state_dict().keys()
    images = stored_images()
    assert torch.equal(one.encode_images(images), same.encode_images(images))
    assert not torch.allclose(one.encode_images(images), other.encode_images(images), atol=1e-3)
    assert not torch.allclose(one.encode_images(images), model.encode_images(images), atol=1e-3)


def test_init__image_encoders_move_between_objectives(tmp_path: Path) -> None:
    """Weights of a training without text start an alignment, and the way back: the image encoder moves, the rest stays."""
    config = recipe()
    dual, tokenizer = build(config, seed=1)
    alone = ImageModel(ENCODERS.build(ENCODERS.parse(config["encoder"])))
    assert load_tensors_into(dual, save_model(tmp_path / "mae", alone, config, None)).unused == ()
    for name, tensor in alone.image_encoder.state_dict().items():
        assert torch.equal(dual.image_encoder.state_dict()[name], tensor)
    back = ImageModel(ENCODERS.build(ENCODERS.parse(config["encoder"])))
    done = load_tensors_into(back, save_model(tmp_path / "clip", dual, config, tokenizer))
    assert done.missing == ()
    assert all(not name.startswith("image_encoder.") for name in done.unused)
    assert torch.equal(back.encode_image(torch.zeros(1, 1, 32, 48)), alone.encode_image(torch.zeros(1, 1, 32, 48)))


def test_roundtrip__without_a_text_side(tmp_path: Path) -> None:
    config = recipe()
    alone = ImageModel(ENCODERS.build(ENCODERS.parse(config["encoder"]))).eval()
    model = load_model(save_model(tmp_path, alone, config, None))
    assert model.card["format"] == 2
    assert model.tokenizer is None
    assert not any("text" in name for name in model.network.state_dict())
    with pytest.raises(WeightsError, match="trained without reports"):
        model.encode_texts(["no effusion"])


def test_without_folders__also_paths_that_lead_upwards_or_home() -> None:
    tree = {"out": "../../home/somebody/run", "data": {"manifest": "~/hospital/m.parquet"}, "name": "a/b", "list": ["/x/y"]}
    assert _without_folders(tree) == {"out": "run", "data": {"manifest": "m.parquet"}, "name": "a/b", "list": ["y"]}


@pytest.mark.parametrize("other", [{"reg_tokens": 4}, {"no_embed_class": True}])
def test_load_tensors__positions_of_other_prefix_tokens_are_named(other: dict[str, Any], tmp_path: Path) -> None:
    def network(**keys: Any) -> tuple[Any, ImageModel]:
        sizes = {"img_size": [16, 16], "patch_size": [8, 8], "embed_dim": 16, "depth": 1, "num_heads": 2, "in_channels": 1}
        config = ENCODERS.parse({"name": "vit", **sizes, **keys})
        return config, ImageModel(ENCODERS.build(config))

    config, model = network()
    recipe = {"encoder": config.model_dump(mode="json"), "objective": {"name": "mae"}, "preprocess": {"size": [16, 16]}}
    path = save_model(tmp_path, model, recipe, None)
    with pytest.raises(WeightsError, match=r"image_encoder\.pos_embed \(1, 5, 16\) for"):
        load_tensors_into(network(img_size=[32, 32], **other)[1], path)


def test_init__text_positions_are_stretched_to_a_longer_context(tmp_path: Path) -> None:
    path, dual = write(tmp_path)
    longer, _ = build(recipe(objective={"tokenizer": {"name": "clip", "context_length": 40}}), 2)
    report = load_tensors_into(longer, path)
    assert report.resampled == ("text_encoder.positional_embedding",)
    expected = stretch_positions(dual.text_encoder.positional_embedding.data, 40)  # type: ignore[union-attr, arg-type]
    assert torch.equal(longer.text_encoder.positional_embedding.data, expected)  # type: ignore[union-attr]


def test_load__the_text_file_that_training_started_from_may_be_gone(tmp_path: Path) -> None:
    start = ClipTextEncoder(ClipTextConfig(embed_dim=32, depth=1, num_heads=2, context_length=16))
    torch.save(start.state_dict(), tmp_path / "clip.pt")
    text = {"name": "clip_text", "embed_dim": 32, "depth": 1, "num_heads": 2, "weights": str(tmp_path / "clip.pt")}
    path, dual = write(tmp_path, objective={"text_encoder": text})
    assert torch.equal(dual.text_encoder.ln_final.weight, start.ln_final.weight)  # type: ignore[union-attr, arg-type]
    (tmp_path / "clip.pt").unlink()
    with torch.no_grad():
        torch.testing.assert_close(load_model(path).encode_texts(TEXTS), dual.encode_text(*load_model(path).tokenizer(TEXTS)))
