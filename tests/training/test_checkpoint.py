from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

from medfm.errors import WeightsError
from medfm.training.checkpoint import AtomicCheckpointIO, Checkpoint, checkpoint_name, latest_checkpoint, read_checkpoint


def test_latest_checkpoint__passes_over_a_damaged_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    io = AtomicCheckpointIO()
    for step in (10, 200):
        state = {"global_step": step, "state_dict": {"w": torch.ones(3)}, "optimizer_states": []}
        io.save_checkpoint(state, tmp_path / checkpoint_name(step))
    newest = tmp_path / checkpoint_name(200)
    newest.write_bytes(newest.read_bytes()[:100])
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert (found.path, found.step) == (tmp_path / checkpoint_name(10), 10)
    assert "damaged" in caplog.text


def test_save__a_failed_write_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    io, path = AtomicCheckpointIO(), tmp_path / checkpoint_name(1)
    io.save_checkpoint({"global_step": 1}, path)

    def full_disk(obj: object, target: object) -> None:
        Path(str(target)).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        io.save_checkpoint({"global_step": 2}, path)
    assert read_checkpoint(path)["global_step"] == 1
    assert os.listdir(tmp_path) == [path.name]


class _Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, ("touch executed",))


def test_load__never_executes_a_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"global_step": 1, "x": _Payload()}, tmp_path / "step=00000001.ckpt")
    (tmp_path / "step=00000002.ckpt").write_bytes(pickle.dumps(_Payload()))
    for name in ("step=00000001.ckpt", "step=00000002.ckpt"):
        with pytest.raises(WeightsError, match="cannot be read"):
            AtomicCheckpointIO().load_checkpoint(tmp_path / name, weights_only=False)
    assert not (tmp_path / "executed").exists()


def test_read_checkpoint__missing() -> None:
    with pytest.raises(WeightsError, match="does not exist"):
        read_checkpoint(Path("nope.ckpt"))


def test_checkpoint_read__a_file_of_another_kind(tmp_path: Path) -> None:
    torch.save({"model": torch.ones(2)}, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=r"model\.pth' is no checkpoint of a medfm run"):
        Checkpoint.read(tmp_path / "model.pth")


def test_checkpoint_check_fits__names_the_first_differences() -> None:
    groups = [{"params": [0, 1]}, {"params": [2]}]
    theirs = {"objective.a": torch.ones(2, 3), "objective.b": torch.ones(()), "objective.gone": torch.ones(4)}
    saved = Checkpoint(Path("x.ckpt"), {"global_step": 3, "state_dict": theirs, "optimizer_states": [{"param_groups": groups}]})
    saved.check_fits(theirs, groups)
    own = {"objective.new": torch.ones(5), "objective.a": torch.ones(3, 2), "objective.b": torch.ones(())}
    expected = (
        r"'x\.ckpt' is of another model: new \(absent there, 5 in this recipe\); a \(2x3 there, 3x2 in this recipe\); "
        r"gone \(4 there, absent in this recipe\)\. Go on with the recipe"
    )
    with pytest.raises(WeightsError, match=expected):
        saved.check_fits(own, groups)
    with pytest.raises(WeightsError, match=r"another optimiser.*optimizer\.\*"):
        saved.check_fits(theirs, [{"params": [0, 1, 2]}])
