from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from medfm.errors import DataError
from medfm.objectives.config import ContrastiveConfig
from medfm.objectives.losses import info_nce, sigmoid_loss
from medfm.transforms.draws import Draws

Make = Callable[..., Any]


@pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
def test_forward__is_the_loss_of_the_rows_with_text(make_objective: Make, make_batch: Make, loss: str) -> None:
    objective, batch = make_objective(loss=loss), make_batch()
    output = objective(batch)
    rows = batch.text_group >= 0
    image = objective.dual.encode_image(batch.images[rows])
    text = objective.dual.encode_text(batch.tokens[rows], batch.attention_mask[rows])
    groups = [batch.patient[rows], batch.text_group[rows]]
    if loss == "infonce":
        expected = info_nce(image, text, objective.dual.logit_scale, groups=groups)
    else:
        expected = sigmoid_loss(image, text, objective.dual.logit_scale, objective.dual.logit_bias, groups=groups)
    torch.testing.assert_close(output.loss, expected.loss)
    assert float(output.logs["rows_without_text"]) == 1.0
    assert float(output.logs["masked_negatives"]) == pytest.approx(4 / (9 * 8))  # two pairs, both ways round
    assert not any(value.requires_grad for value in output.logs.values())


def test_logs__name_each_term(make_objective: Make, make_batch: Make) -> None:
    shared = {
        "loss",
        "accuracy_image_to_text",
        "accuracy_text_to_image",
        "logit_scale",
        "masked_negatives",
        "rows_without_text",
    }
    softmax = make_objective()(make_batch()).logs
    assert set(softmax) == shared | {"loss_image_to_text", "loss_text_to_image"}
    assert float(softmax["logit_scale"]) == pytest.approx(1 / 0.07, rel=1e-6)
    sigmoid = make_objective(loss="sigmoid")(make_batch()).logs
    assert set(sigmoid) == shared | {"loss_positives", "loss_negatives", "logit_bias"}
    assert float(sigmoid["logit_bias"]) == -10.0


def test_masking__can_be_switched_off(make_objective: Make, make_batch: Make) -> None:
    def masked(**knobs: Any) -> float:
        return float(make_objective(**knobs)(make_batch()).logs["masked_negatives"])

    assert masked(mask_same_patient=False) == pytest.approx(2 / 72)
    assert masked(mask_same_text=False) == pytest.approx(2 / 72)
    assert masked(mask_same_patient=False, mask_same_text=False) == 0.0


def test_masking__knows_the_sentence_that_was_drawn(make_objective: Make, make_batch: Make) -> None:
    drawn = torch.arange(10)
    drawn[[6, 7]] = 50  # two reports, one sentence
    drawn[8] = -1  # a report of which nothing was kept
    logs = make_objective()(replace(make_batch(), drawn=drawn)).logs
    assert float(logs["rows_without_text"]) == 2.0
    assert float(logs["masked_negatives"]) == pytest.approx(6 / (8 * 7))
    assert float(make_objective(mask_same_text=False)(replace(make_batch(), drawn=drawn)).logs["masked_negatives"]) == (
        pytest.approx(2 / (8 * 7))
    )


def test_rows_without_text__change_nothing_even_where_they_give_nan(
    make_objective: Make, make_batch: Make, gradients: Make
) -> None:
    batch = make_batch()
    plain, poisoned = make_objective(), make_objective()
    plain(batch).loss.backward()
    images = batch.images.clone()
    images[1] = math.nan
    poisoned(replace(batch, images=images)).loss.backward()
    expected = gradients(plain)
    for name, gradient in gradients(poisoned).items():
        assert torch.equal(gradient, expected[name])


def test_batch_without_any_text__gives_zero_gradients(make_objective: Make, make_batch: Make, gradients: Make) -> None:
    objective = make_objective(cache_chunk=4)
    output = objective(replace(make_batch(), text_group=torch.full((10,), -1)))
    output.loss.backward()
    assert float(output.loss.detach()) == 0.0
    assert float(output.logs["rows_without_text"]) == 10.0
    assert all(float(g.abs().max()) == 0.0 for g in gradients(objective).values())
    assert "dual.image_encoder.cls_token" in gradients(objective)  # every device has something to synchronise


def test_no_tokens__says_what_to_do(make_objective: Make, make_batch: Make) -> None:
    with pytest.raises(DataError, match="reports="):
        make_objective()(replace(make_batch(), tokens=None))


def test_patch_dropout__in_training_only_and_by_the_draws(make_objective: Make, make_batch: Make) -> None:
    objective = make_objective(patch_dropout=0.5)
    seen: list[torch.Size | None] = []
    objective.dual.image_encoder.register_forward_pre_hook(
        lambda _, args: seen.append(None if args[1] is None else args[1].shape)
    )

    def loss(seed: int) -> float:
        return float(objective(make_batch(), Draws(seed)).loss.detach())

    first, other, again = loss(0), loss(1), loss(0)
    assert first == again != other
    objective.eval()
    assert loss(0) == loss(1)
    assert seen == [torch.Size([9, 8])] * 3 + [None] * 2


def test_logit_scale__is_clamped_after_the_step(make_objective: Make) -> None:
    objective = make_objective(max_logit_scale=50.0)
    objective.after_optimizer_step(1, 10)
    assert float(objective.dual.logit_scale.detach().exp()) == pytest.approx(1 / 0.07, rel=1e-6)
    objective.dual.logit_scale.data.fill_(math.log(80.0))
    objective.after_optimizer_step(2, 10)
    assert float(objective.dual.logit_scale.detach().exp()) == pytest.approx(50.0, rel=1e-6)


def test_fixed_temperature__stays(make_objective: Make, make_batch: Make, gradients: Make) -> None:
    objective = make_objective(learn_temperature=False, temperature=0.005)  # a scale of 200, asked for
    objective(make_batch()).loss.backward()
    objective.after_optimizer_step(1, 10)
    assert float(objective.dual.logit_scale.exp()) == pytest.approx(200.0, rel=1e-6)
    assert "dual.logit_scale" not in gradients(objective)


def test_to_float__sees_the_stored_pixels(make_objective: Make, make_batch: Make) -> None:
    batch = make_batch()
    stored = (batch.images * 40 + 128).clamp(0, 255).to(torch.uint8)
    objective = make_objective(to_float=lambda x: x.double() / 255)
    expected = make_objective()(replace(batch, images=stored.double() / 255)).loss
    torch.testing.assert_close(objective(replace(batch, images=stored)).loss, expected)


def test_training__tells_pairs_apart(make_objective: Make, make_batch: Make) -> None:
    objective, batch = make_objective(cache_chunk=5), make_batch()
    optimiser = torch.optim.Adam(objective.parameters(), lr=3e-3)
    for i in range(60):
        optimiser.zero_grad()
        output = objective(batch)
        output.loss.backward()
        optimiser.step()
        objective.after_optimizer_step(i, 60)
    assert float(output.loss.detach()) < 0.5
    assert float(output.logs["accuracy_image_to_text"]) == 1.0


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"loss": "sigmoid", "image_weight": 0.75}, "no directions"),
        ({"temperature": 0.005}, "starts the logit scale at 200, above max_logit_scale 100"),
    ],
)
def test_config__refuses_what_contradicts_itself(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ContrastiveConfig(**knobs)
