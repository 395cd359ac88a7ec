"""`medfm plan` from the command line and from Python."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from medfm import api, cli
from medfm.errors import ConfigError

TINY = {
    "preprocess.size": [48, 48],
    "encoder.patch_size": [8, 8],
    "encoder.embed_dim": 64,
    "encoder.depth": 2,
    "encoder.num_heads": 2,
    "objective.text_encoder.depth": 1,
    "objective.text_encoder.embed_dim": 64,
    "objective.text_encoder.num_heads": 2,
    "data.batch_size": 64,
}


@pytest.fixture(autouse=True)
def _no_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def plan(gpu: str, **more: Any) -> Any:
    return api.plan("chest_xray", gpu, {**TINY, **more})


def test_plan__fits_as_it_is() -> None:
    found = plan("24GB", images=10_000)
    assert found.as_is.fits
    assert found.proposals[0].overrides == {}
    assert found.steps == 30 * (10_000 // 64)
    hours = found.hours(found.proposals[0])
    assert hours == pytest.approx(found.steps * found.proposals[0].seconds / 3600)
    assert found.proposals == sorted(found.proposals, key=lambda p: round(p.seconds, 4))


def test_plan__contrastive_is_cached_not_accumulated() -> None:
    found = plan("1.3GB", **{"data.batch_size": 1024})
    assert not found.as_is.fits
    best = found.proposals[0]
    assert best.fits
    assert best.memory.total <= 1.3e9
    assert all(p.setting.accumulate == 1 for p in found.proposals)  # negatives stay
    assert any(p.setting.chunk or p.setting.checkpointing for p in found.proposals)


def test_plan__mae_accumulates_the_same_batch() -> None:
    mae = {"objective": "mae", "objective.decoder_dim": 64, "objective.decoder_depth": 1, "objective.decoder_heads": 2}
    keys = {key: value for key, value in TINY.items() if not key.startswith("objective")}
    found = api.plan("chest_xray", "1.1GB", {**keys, **mae, "data.batch_size": 2048})
    assert found.proposals
    for proposal in found.proposals:
        assert proposal.fits
        assert proposal.setting.micro * proposal.setting.accumulate == 2048
    split = [p for p in found.proposals if p.setting.accumulate > 1]
    assert split
    assert split[0].overrides["data.batch_size"] == split[0].setting.micro


def test_plan__too_small_says_what_to_do() -> None:
    found = plan("1GB", **{"encoder.embed_dim": 256, "encoder.num_heads": 4})
    assert found.proposals == []
    text = " ".join(found.notes)
    assert "Does not fit 1 GB even with 1 image a pass" in text
    assert "smaller encoder" in text or "smaller images" in text


def test_plan__command_is_itself_a_valid_recipe() -> None:
    found = plan("1.3GB", **{"data.batch_size": 1024})
    words = shlex.split(found.command(found.proposals[0]))
    assert words[:3] == ["medfm", "pretrain", "recipe=chest_xray"]
    Path("m.parquet").touch()
    assert cli.main(["validate", *words[2:], "data.manifest=m.parquet"]) == 0


def test_plan__devices_share_the_batch() -> None:
    one, two = plan("24GB"), plan("24GB", devices=2)
    assert two.as_is.setting.micro == one.as_is.setting.micro // 2
    assert "trainer.devices=2" in two.command(two.proposals[0])
    with pytest.raises(ConfigError, match=r"batch_size 64 cannot be shared by 3 devices"):
        plan("24GB", devices=3)


def test_plan__measure_on_cpu_and_json(tmp_path: Path) -> None:
    found = plan("24GB", measure=True, out=str(tmp_path / "plan.json"))
    assert found.measured["peak_ratio"] == pytest.approx(1, abs=0.05)
    assert found.measured["kept_ratio"] == pytest.approx(1, abs=0.05)
    written = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    assert written["proposals"][0]["total"] == found.proposals[0].memory.total
    assert written["measured"]["measured"]["rows"] == 2


def test_main__prints_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"{key}={json.dumps(value)}" for key, value in TINY.items()]
    assert cli.main(["plan", "recipe=chest_xray", "gpu=l4", "images=1000", *words]) == 0
    shown = capsys.readouterr().out
    assert "medfm pretrain recipe=chest_xray" in shown
    assert "1,000 training images" in shown
    assert "assumes 35%" in shown


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["gpu=rtx_4900"], "did you mean 'rtx_4090'"),
        (["gup=24GB"], "did you mean 'gpu'?"),
        (["gpu=24GB", "encoder.dpth=3"], "did you mean 'encoder.depth'?"),
        (["gpu=24GB", "objective.mask_ratio=2"], "objective.mask_ratio"),
    ],
)
def test_main__mistakes(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "recipe=chest_xray", *words]) == 2
    assert says in capsys.readouterr().err


def test_main__unknown_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "recipe=chest_xry", "gpu=24GB"]) == 2
    assert "did you mean 'chest_xray'" in capsys.readouterr().err


def test_plan__a_cached_recipe_that_accumulates_takes_the_time_of_all_its_passes() -> None:
    keys = {"objective.cache_chunk": 8, "data.batch_size": 16}
    once, thrice = (plan("rtx_4090", **keys, **{"trainer.accumulate": n}).as_is for n in (1, 3))
    assert thrice.flops == pytest.approx(3 * once.flops)
    assert thrice.seconds > 2 * once.seconds


def test_plan__a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written: Is a directory"):
        plan("24GB", out=tmp_path)
