from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

from medfm.errors import WeightsError
from medfm.training.checkpoint import AtomicCheckpointIO, checkpoint_name, latest_checkpoint, read_checkpoint


def test_latest_checkpoint__passes_over_a_damaged_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    io = AtomicCheckpointIO()
    for step in (10, 200):
        io.save_checkpoint({"global_step": step, "w": torch.ones(3)}, tmp_path / checkpoint_name(step))
    newest = tmp_path / checkpoint_name(200)
    newest.write_bytes(newest.read_bytes()[:100])
    assert latest_checkpoint(tmp_path) == tmp_path / checkpoint_name(10)
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
