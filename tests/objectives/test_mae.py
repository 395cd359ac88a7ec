from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medfm.encoders.config import TimmConfig, VitConfig
from medfm.encoders.patches import patchify, unpatchify
from medfm.encoders.positions import sincos_positions
from medfm.encoders.timm2d import TimmEncoder
from medfm.encoders.vit import VisionTransformer
from medfm.errors import ConfigError
from medfm.objectives.config import MaeConfig
from medfm.objectives.gather import SingleDevice
from medfm.objectives.mae import MaeObjective
from medfm.objectives.masking import Masks, masks_by_score
from medfm.transforms.draws import Draws
from medfm.types import Batch

TINY = {"decoder_dim": 24, "decoder_depth": 2, "decoder_heads": 2}


def vit(axes: int = 2, **knobs: Any) -> VisionTransformer:
    size = {"img_size": (32, 24), "patch_size": (8, 4)} if axes == 2 else {"img_size": (8, 16, 16), "patch_size": (2, 8, 4)}
    config = {**size, "in_channels": 2, "embed_dim": 36, "depth": 2, "num_heads": 3, "pos_embed": "sincos", **knobs}
    return VisionTransformer(VitConfig(**config))


def make(axes: int = 2, encoder: dict[str, Any] | None = None, std: tuple[float, ...] = (1.0,), **knobs: Any) -> MaeObjective:
    torch.manual_seed(0)
    return MaeObjective(MaeConfig(**{**TINY, **knobs}), vit(axes, **(encoder or {})), std).double()


def batch_of(images: Tensor) -> Batch:
    rows = torch.arange(len(images))
    return Batch(images, None, None, rows, rows, torch.zeros(len(images), 0), rows)


def images_for(objective: MaeObjective, n: int = 3, seed: int = 1) -> Tensor:
    size = tuple(g * p for g, p in zip(objective.image_model.image_encoder.grid_size, objective.patch_size, strict=True))
    return torch.randn(n, objective.channels, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# the paper's arithmetic, in float64


def reference_block(x: Tensor, block: nn.Module, heads: int) -> Tensor:
    """Pre-norm attention and MLP, written out head by head."""
    weights = dict(block.named_parameters())

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weights[f"{name}.weight"]
            + weights[f"{name}.bias"]
        )

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    q, k, v = linear(norm(x, "norm1"), "attn.qkv").chunk(3, dim=-1)
    width = q.shape[-1] // heads
    out = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(width)
        out.append(torch.softmax(scores, dim=-1) @ v[..., part])
    x = x + linear(torch.cat(out, dim=-1), "attn.proj")
    hidden = linear(norm(x, "norm2"), "mlp.fc1")
    return x + linear(0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2))), "mlp.fc2")


def reference_loss(objective: MaeObjective, images: Tensor, noise: Tensor, keep: int, norm_pix: bool, loss: str) -> Tensor:
    """models_mae.py's forward: every patch embedded, shuffled, masked, restored to the grid, every one predicted."""
    encoder: Any = objective.image_model.image_encoder
    decoder: Any = objective.decoder
    patch, axes = objective.patch_size, len(objective.patch_size)
    convolve = F.conv2d if axes == 2 else F.conv3d
    x = (
        convolve(images, encoder.patch_embed.proj.weight, encoder.patch_embed.proj.bias, stride=patch)
        .flatten(2)
        .transpose(1, 2)
    )
    x = x + encoder.pos_embed
    shuffle = noise.argsort(dim=1)
    restore = shuffle.argsort(dim=1)
    x = x.gather(1, shuffle[:, :keep, None].expand(-1, -1, x.shape[-1]))
    x = torch.cat([encoder.cls_token.expand(len(x), -1, -1), x], dim=1)
    for block in encoder.blocks:
        x = reference_block(x, block, block.attn.num_heads)
    x = F.layer_norm(x, x.shape[-1:], encoder.norm.weight, encoder.norm.bias, 1e-6)
    x = decoder.embed(x)
    count = noise.shape[1]
    full = torch.cat([x[:, 1:], decoder.mask_token.expand(len(x), count - keep, -1)], dim=1)
    full = full.gather(1, restore[..., None].expand(-1, -1, x.shape[-1]))
    x = torch.cat([x[:, :1], full + decoder.pos_embed], dim=1)
    for block in decoder.blocks:
        x = reference_block(x, block, block.attn.num_heads)
    predicted = decoder.pred(decoder.norm(x))[:, 1:]
    target = patchify(images, patch)
    if norm_pix:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    gap = predicted - target
    small = gap.abs() < 1
    per_pixel = {"mse": gap**2, "l1": gap.abs(), "smooth_l1": torch.where(small, 0.5 * gap**2, gap.abs() - 0.5)}[loss]
    mask = torch.ones_like(noise, dtype=torch.float64)
    mask[:, :keep] = 0
    mask = mask.gather(1, restore)
    return (per_pixel.mean(-1) * mask).sum() / mask.sum()


@pytest.mark.parametrize(
    ("axes", "norm_pix", "loss"), [(2, True, "mse"), (2, False, "l1"), (3, True, "smooth_l1"), (3, False, "mse")]
)
def test_step__equals_the_papers_arithmetic(axes: int, norm_pix: bool, loss: str) -> None:
    """Loss, all gradients and the weights after one AdamW step."""
    objective, reference = (make(axes, norm_pix=norm_pix, loss=loss) for _ in range(2))
    images = images_for(objective)
    count = math.prod(objective.image_model.image_encoder.grid_size)
    noise = Draws(5).rand(3, count)
    expected = reference_loss(reference, images, noise, int(count * 0.25), norm_pix, loss)
    found = objective(batch_of(images), Draws(5)).loss
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    for model, value in ((objective, found), (reference, expected)):
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=1e-3, weight_decay=0.05, betas=(0.9, 0.95), fused=model is objective
        )
        value.backward()
        optimizer.step()
    for (name, mine), theirs in zip(objective.named_parameters(), reference.parameters(), strict=True):
        assert mine.grad is not None, name
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-13, msg=lambda m, n=name: f"{n}: {m}")
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def test_float32__is_within_a_millionth_of_float64() -> None:
    objective = make()
    images = images_for(objective)
    exact = objective(batch_of(images), Draws(0)).loss.item()
    assert objective.float()(batch_of(images.float()), Draws(0)).loss.item() == pytest.approx(exact, rel=1e-6)


def test_gradients__are_those_of_finite_differences() -> None:
    objective = make(encoder={"depth": 1}, decoder_depth=1)
    batch = batch_of(images_for(objective, 2))
    objective(batch, Draws(0)).loss.backward()
    for name in ("decoder.mask_token", "decoder.blocks.0.attn.qkv.weight", "image_model.image_encoder.patch_embed.proj.weight"):
        parameter = objective.get_parameter(name)
        place = tuple(n // 2 for n in parameter.shape)
        values = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                parameter[place] += step
                values.append(objective(batch, Draws(0)).loss.item())
                parameter[place] -= step
        assert parameter.grad is not None
        assert parameter.grad[place].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5, abs=1e-9), name


# other people's code


def test_mae__equals_transformers(tmp_path: Path) -> None:
    """The same weights and noise: loss, predictions and gradients of transformers' ViTMAEForPreTraining; and its weights,
    written under the authors' names with the decoder, load through `encoder.weights`."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    theirs = ViTMAEForPreTraining(
        ViTMAEConfig(
            image_size=32, patch_size=8, num_channels=3, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=64, decoder_hidden_size=24, decoder_num_hidden_layers=2, decoder_num_attention_heads=2,
            decoder_intermediate_size=48, norm_pix_loss=True, layer_norm_eps=1e-6,
        )
    ).double()  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "pos" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.1)
            else:  # left zero by transformers 5.x in a model that is built, not loaded
                parameter[:, 1:] = sincos_positions((4, 4), parameter.shape[-1])
    state = authors_names(theirs.state_dict())
    torch.save({"model": state, "epoch": 1}, tmp_path / "mae_pretrain_full.pth")
    knobs = {"img_size": (32, 32), "patch_size": (8, 8), "in_channels": 3, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2.0}
    encoder = vit(**knobs, weights=tmp_path / "mae_pretrain_full.pth").double()
    config = MaeConfig(**TINY, decoder_mlp_ratio=2.0)
    objective = MaeObjective(config, encoder).double()
    objective.image_model.image_encoder.load_state_dict({k: v for k, v in state.items() if k in encoder.state_dict()})
    objective.decoder.load_state_dict(
        {"mask_token": state["mask_token"]}
        | {k.removeprefix("decoder_"): v for k, v in state.items() if k.startswith("decoder_") and k != "decoder_pos_embed"}
    )
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=generator)
    noise = Draws(3).rand(4, 16)
    expected = theirs(images, noise=noise)
    found = objective(batch_of(images), Draws(3))
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=1e-10)
    found_again = objective.reconstruct(batch_of(images), Draws(3))
    assert torch.equal(found_again.masked, expected.mask.bool())
    undone = patchify(images, (8, 8))
    undone = expected.logits * (undone.var(-1, keepdim=True) + 1e-6).sqrt() + undone.mean(-1, keepdim=True)
    torch.testing.assert_close(found_again.pixels, undone, rtol=1e-8, atol=1e-10)
    expected.loss.backward()
    found.loss.backward()
    gradients = authors_names({n: p.grad for n, p in theirs.named_parameters() if p.grad is not None})
    for name, parameter in objective.named_parameters():
        name = name.replace("image_model.image_encoder.", "").replace("decoder.", "decoder_").replace("decoder_mask", "mask")
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-7, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


def authors_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names to those of models_mae.py."""
    swaps = {
        "vit.embeddings.patch_embeddings.projection": "patch_embed.proj", "vit.embeddings.position_embeddings": "pos_embed",
        "vit.embeddings.": "", "vit.layers.": "blocks.", "vit.layernorm": "norm", "decoder.decoder_layers.": "decoder_blocks.",
        "decoder.": "", "layernorm_before": "norm1", "layernorm_after": "norm2", "attention.o_proj": "attn.proj",
        "attention.": "attn.",
    }  # fmt: skip
    renamed = {}
    for name, value in state.items():
        for old, new in swaps.items():
            name = name.replace(old, new)
        renamed[name] = value
    made = {}
    for name, value in renamed.items():
        if "q_proj" in name:
            parts = [renamed[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            made[name.replace("q_proj", "qkv")] = torch.cat(parts)
        elif "k_proj" not in name and "v_proj" not in name:
            made[name] = value
    return made


def test_mae__equals_monai_in_3d() -> None:
    """Predictions of MONAI's MaskedAutoEncoderViT with the same weights and the same masked patches."""
    monai = pytest.importorskip("monai.networks.nets")
    torch.manual_seed(0)
    theirs = monai.MaskedAutoEncoderViT(
        in_channels=1, img_size=(8, 16, 16), patch_size=(4, 8, 4), hidden_size=36, mlp_dim=72, num_layers=2, num_heads=3,
        decoder_hidden_size=24, decoder_mlp_dim=48, decoder_num_layers=2, decoder_num_heads=2, qkv_bias=True,
    ).double()  # fmt: skip
    encoder = vit(3, img_size=(8, 16, 16), patch_size=(4, 8, 4), in_channels=1, mlp_ratio=2.0)
    objective = MaeObjective(MaeConfig(**TINY, decoder_mlp_ratio=2.0, norm_pix=False), encoder).double()
    decoder: Any = objective.decoder
    copy_monai(theirs, encoder, decoder)
    # MONAI's tables have another layout (and are float32): they are given to ours.
    encoder.pos_embed, decoder.pos_embed = theirs.patch_embedding.position_embeddings.data, theirs.decoder_pos_embedding.data
    for module in theirs.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    images = torch.randn(2, 1, 8, 16, 16, dtype=torch.float64)
    torch.manual_seed(4)
    expected, mask = theirs(images)
    masked = torch.stack([row.nonzero()[:, 0] for row in mask])
    keep = torch.stack([(1 - row).nonzero()[:, 0] for row in mask])
    masks = Masks(keep, masked)
    found = decoder(encoder(images, keep), masks)
    wanted = torch.stack([row[chosen] for row, chosen in zip(expected, masked, strict=True)])
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)


def copy_monai(theirs: Any, encoder: Any, decoder: Any) -> None:
    def block(source: Any, target: Any) -> None:
        pairs = [("norm1", "norm1"), ("norm2", "norm2"), ("attn.qkv", "attn.qkv"), ("attn.out_proj", "attn.proj")]
        for old, new in [*pairs, ("mlp.linear1", "mlp.fc1"), ("mlp.linear2", "mlp.fc2")]:
            target.get_submodule(new).load_state_dict(source.get_submodule(old).state_dict())

    with torch.no_grad():
        encoder.patch_embed.proj.load_state_dict(theirs.patch_embedding.patch_embeddings.state_dict())
        encoder.cls_token.copy_(theirs.cls_token)
        decoder.mask_token.copy_(theirs.mask_tokens)
    for mine, other in ((encoder, theirs.blocks), (decoder, theirs.decoder_blocks)):
        for source, target in zip(list(other)[:-1], mine.blocks, strict=True):
            block(source, target)
        mine.norm.load_state_dict(other[-1].state_dict())
    decoder.embed.load_state_dict(theirs.decoder_embed.state_dict())
    decoder.pred.load_state_dict(theirs.decoder_pred.state_dict())


# SimMIM


def swin() -> TimmEncoder:
    pytest.importorskip("timm")
    torch.manual_seed(0)
    return TimmEncoder(TimmConfig(model="swin_tiny_patch4_window7_224", img_size=(64, 64), in_channels=1))


def test_simmim__equals_its_arithmetic_on_swin() -> None:
    """Mask tokens after the patch embedding, 32 x 32 pixels a token through a 1 x 1 convolution and pixel shuffle, L1 on masked
    pixels: simmim.py's forward, on the same weights."""
    encoder = swin()
    objective = MaeObjective(
        MaeConfig(encode_all=True, head="linear", loss="l1", norm_pix=False, mask_ratio=0.5), encoder
    ).double()
    assert objective.patch_size == (32, 32)
    objective.eval()  # timm's Swin has drop path
    images = torch.randn(2, 1, 64, 64, dtype=torch.float64)
    output = objective(batch_of(images), Draws(1))
    mask = masks_by_score(Draws(1).rand(2, 4), 2, 2).map(4).reshape(2, 2, 2)
    fine = mask.repeat_interleave(8, 1).repeat_interleave(8, 2)  # Swin's patches have 4 pixels
    model, w = encoder.model, fine[..., None].double()
    x = model.patch_embed(images)
    x = x * (1 - w) + objective.mask_token * w
    z = model.norm(model.layers(x)).permute(0, 3, 1, 2)
    pred: Any = objective.decoder.get_submodule("pred")
    # PixelShuffle wants channels before pixels; with one channel the order is the same.
    rebuilt = F.pixel_shuffle(F.conv2d(z, pred.weight[..., None, None], pred.bias), 32)
    pixels = mask.repeat_interleave(32, 1).repeat_interleave(32, 2)[:, None].double()
    expected = ((images - rebuilt).abs() * pixels).sum() / pixels.sum()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-10)
    output.loss.backward()
    assert all(p.grad is not None for p in objective.parameters())


@pytest.mark.parametrize("head", ["linear", "decoder"])
def test_encode_all__vit_sees_mask_tokens_and_no_masked_pixel(head: str) -> None:
    objective = make(encode_all=True, head=head, mask_ratio=0.5, norm_pix=False, mask_unit=2)
    images = images_for(objective)
    masks, _ = objective.draw_masks(images, Draws(0))
    hidden = masks.map(24)
    changed = patchify(images, objective.patch_size).masked_fill(hidden[..., None], 7.0)
    predicted = objective.reconstruct(batch_of(images), Draws(0)).pixels
    other = objective.reconstruct(batch_of(unpatchify(changed, (4, 6), objective.patch_size)), Draws(0)).pixels
    torch.testing.assert_close(predicted, other)
    objective(batch_of(images), Draws(0)).loss.backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in objective.parameters())


def test_encoder__that_cannot_leave_patches_out_is_refused() -> None:
    with pytest.raises(ConfigError, match="encode_all=true"):
        MaeObjective(MaeConfig(), swin())
    with pytest.raises(ConfigError, match="no patch embedding"):
        MaeObjective(MaeConfig(encode_all=True), TimmEncoder(TimmConfig(model="resnet18", img_size=(64, 64))))


# details


def test_forward__masked_pixels_do_not_reach_the_encoder() -> None:
    objective = make(norm_pix=False)
    images = images_for(objective)
    masks, _ = objective.draw_masks(images, Draws(0))
    changed = patchify(images, objective.patch_size).masked_fill(masks.map(24)[..., None], float("nan"))
    predicted = objective.reconstruct(batch_of(unpatchify(changed, (4, 6), objective.patch_size)), Draws(0)).pixels
    torch.testing.assert_close(predicted, objective.reconstruct(batch_of(images), Draws(0)).pixels)


def test_relative_error__is_one_where_the_patch_mean_is_predicted() -> None:
    """And counts in the contract's pixels: channels of larger deviation weigh more."""
    for norm_pix, std, loss in (
        (True, (0.5, 0.1), "mse"),
        (False, (0.5, 0.1), "l1"),
        (True, (0.3,), "mse"),
        (True, (0.3,), "l1"),
    ):
        channels = len(std)
        objective = make(std=std, norm_pix=norm_pix, loss=loss, encoder={"in_channels": channels})
        images = images_for(objective)
        made = objective.reconstruct(batch_of(images), Draws(0))
        predicted, hidden = made.pixels, made.masked
        scale = torch.tensor(std, dtype=torch.float64)
        truth = patchify(images, objective.patch_size)[hidden].unflatten(-1, (-1, channels)) * scale
        error = (predicted[hidden].unflatten(-1, (-1, channels)) * scale - truth).square().sum()
        expected = error / (truth - truth.mean(1, keepdim=True)).square().sum()
        logs = objective(batch_of(images), Draws(0)).logs
        assert logs["relative_error"].item() == pytest.approx(expected.item(), rel=1e-6)
    objective = make(encoder={"in_channels": 1})
    for parameter in objective.decoder.get_submodule("pred").parameters():  # type: ignore[union-attr]
        nn.init.zeros_(parameter)
    logs = objective(batch_of(images_for(objective)), Draws(0)).logs
    assert logs["relative_error"].item() == pytest.approx(1.0, rel=1e-9)


def test_mask_channels__hides_whole_channels_and_reconstructs_all() -> None:
    objective = make(mask_channels=0.5, encoder={"in_channels": 4})
    images = images_for(objective, 64)
    seen = objective._channels_seen(images, Draws(0)).flatten(1)
    assert seen.shape == (64, 4)
    assert bool((seen.sum(1) >= 1).all())
    assert 0.4 < seen.mean().item() < 0.65  # a little above one half: one always stays
    almost = make(mask_channels=0.99, encoder={"in_channels": 4})
    assert almost._channels_seen(images, Draws(0)).flatten(1).sum(1).max() <= 2
    assert objective.reconstruct(batch_of(images[:2]), Draws(0)).pixels.shape == (2, 24, 8 * 4 * 4)
    got: list[Tensor] = []
    encoder = objective.image_model.image_encoder
    encoder.register_forward_pre_hook(lambda module, args: got.append(args[0]))
    objective(batch_of(images), Draws(0))
    assert torch.equal(got[0].abs().amax(dim=(2, 3)) > 0, _channels_drawn(images))


def _channels_drawn(images: Tensor) -> Tensor:
    """The second thing that the same draws give: the masks take the first."""
    draws = Draws(0)
    draws.rand(len(images), 24)
    noise = draws.rand(len(images), 4)
    return (noise >= 0.5) | (noise == noise.amax(dim=1, keepdim=True))


def test_foreground__weights_and_left_out_patches() -> None:
    """Half of each image is air: it is left out first, and what stays of it counts by its weight."""
    objective = make(masking="foreground", foreground_share=0.5, background_weight=0.0, mask_ratio=0.5)
    images = images_for(objective)
    images[..., :12] = -1.0  # three of six columns of patches
    masks, foreground = objective.draw_masks(images, Draws(0))
    assert foreground is not None
    assert foreground.reshape(3, 4, 6).any(1).tolist() == [[False] * 3 + [True] * 3] * 3
    assert masks.keep.shape == masks.masked.shape == (3, 6)
    assert bool((torch.cat([masks.keep, masks.masked], 1) % 6 >= 3).all())
    output = objective(batch_of(images), Draws(0))
    assert output.logs["masked_foreground"] == 1.0
    # All patches take part, half of them air that weighs nothing: the loss is that of the others alone.
    weightless, equal = (make(masking="foreground", background_weight=w, mask_ratio=0.5) for w in (0.0, 1.0))
    masks, foreground = weightless.draw_masks(images, Draws(0))
    predicted = weightless.decoder(weightless._encode(images, masks, None), masks)
    target = patchify(images, weightless.patch_size, masks.masked)
    normed = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    per_patch, inside = (predicted - normed).square().mean(-1), foreground.gather(1, masks.masked)
    assert weightless(batch_of(images), Draws(0)).loss.item() == pytest.approx(per_patch[inside].mean().item(), rel=1e-9)
    assert equal(batch_of(images), Draws(0)).loss.item() == pytest.approx(per_patch.mean().item(), rel=1e-9)


@pytest.mark.parametrize("world", [1, 8])
def test_foreground__an_empty_image_gives_a_finite_loss(world: int) -> None:
    objective = make(masking="foreground", background_weight=0.0)
    devices = SingleDevice()
    devices.world_size = world
    objective._gather = devices
    output = objective(batch_of(torch.zeros_like(images_for(objective))), Draws(0))
    assert output.loss.item() == 0.0
    output.loss.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in objective.parameters())


@pytest.mark.parametrize("encoder", [{"class_token": False, "pool": "mean"}, {"reg_tokens": 2}, {"pos_embed": "learn"}])
def test_every_parameter_gets_a_gradient(encoder: dict[str, Any]) -> None:
    objective = make(encoder=encoder)
    objective(batch_of(images_for(objective)), Draws(0)).loss.backward()
    assert [name for name, p in objective.named_parameters() if p.grad is None] == []


def test_checkpointing_and_autocast__change_nothing_much() -> None:
    plain, saving = make().float(), make(encoder={"gradient_checkpointing": True}).float()
    batch = batch_of(images_for(plain).float())
    plain(batch, Draws(0)).loss.backward()
    saving(batch, Draws(0)).loss.backward()
    for mine, other in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = plain(batch, Draws(0)).loss
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(plain(batch, Draws(0)).loss.item(), rel=0.02)


def test_it_learns__to_fill_in_stripes() -> None:
    torch.manual_seed(0)
    objective = MaeObjective(MaeConfig(**TINY, mask_ratio=0.5, norm_pix=False), vit(in_channels=1))
    rows = torch.arange(32.0)[None, None, :, None]
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    draws = Draws(0)
    for _ in range(200):
        phase = 6.28 * draws.rand(16, 1, 1, 1)
        output = objective(batch_of(torch.sin(rows / 8 + phase).expand(-1, 1, 32, 24)), draws)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert output.logs["relative_error"] < 0.4


def test_patchify__is_undone_and_takes_what_is_chosen() -> None:
    x = torch.randn(2, 3, 4, 8, 6)
    patches = patchify(x, (2, 4, 3))
    assert torch.equal(unpatchify(patches, (2, 2, 2), (2, 4, 3)), x)
    assert torch.equal(patches[0, 5].reshape(2, 4, 3, 3), x[0, :, 2:, :4, 3:].movedim(0, -1))
    chosen = torch.tensor([[1, 4], [0, 7]])
    assert torch.equal(patchify(x, (2, 4, 3), chosen), torch.stack([patches[0, [1, 4]], patches[1, [0, 7]]]))


def test_config__says_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="encode_all=true"):
        MaeConfig(head="linear")
    with pytest.raises(ValueError, match="decoder_heads"):
        MaeConfig(decoder_dim=10, decoder_heads=3)
    with pytest.raises(ValueError, match="masking=foreground"):
        MaeConfig(foreground_share=0.5)
    with pytest.raises(ConfigError, match="mask_unit"):
        make(mask_unit=5)
    with pytest.raises(ConfigError, match=r"objective\.mask_ratio=0\.99 leaves no patch to be seen of 24; .* lower ratio"):
        make(mask_ratio=0.99)
    with pytest.raises(ConfigError, match=r"mask_ratio=0\.9 leaves no patch to be seen of 5;"):
        make(mask_ratio=0.9, masking="foreground", foreground_share=0.2)
    assert make(mask_ratio=0.95).draw_masks(torch.zeros(1, 2, 32, 24), None)[0].keep.shape == (1, 1)
