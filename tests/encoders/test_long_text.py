"""CLIP's text side from public files, and contexts longer than they were trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from medfm.encoders.config import ClipTextConfig
from medfm.encoders.positions import stretch_positions
from medfm.encoders.text import ClipTextEncoder
from medfm.errors import WeightsError
from medfm.text.config import ClipTokenizerConfig
from medfm.text.tokenizers import ClipTokenizer

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "vocab_size": 99}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_stretch_positions__is_long_clips_table() -> None:
    """77 -> 248 by the authors' formula, written out: four places for each of the old ones from the 21st on."""
    old = random(77, 5).double()
    expected = torch.zeros(248, 5, dtype=torch.float64)
    expected[:20] = old[:20]
    for i in range(57):
        here = old[20 + i]
        step = old[20 + i + 1] - here if i < 56 else old[76] - old[75]
        for quarter in range(4):
            expected[20 + 4 * i + quarter] = here + quarter / 4 * step
    torch.testing.assert_close(stretch_positions(old, 248), expected)


@pytest.mark.parametrize("length", [78, 100, 512])
def test_stretch_positions__other_lengths_follow_a_line(length: int) -> None:
    ramp = torch.arange(77.0)[:, None]
    new = stretch_positions(ramp, length)[:, 0]
    assert torch.equal(new[:20], ramp[:20, 0])
    steps = new.diff()[20:]
    torch.testing.assert_close(steps, torch.full_like(steps, 57 / (length - 20)), rtol=0, atol=1e-4)
    assert 76 <= float(new[-1]) < 77


def test_stretch_positions__short_tables_and_fewer_places() -> None:
    old = random(8, 3)
    assert torch.equal(stretch_positions(old, 5), old[:5])
    assert torch.equal(stretch_positions(old, 8), old)
    longer = stretch_positions(old, 16)
    assert torch.equal(longer[:6], old[:6])
    assert longer.isfinite().all()
    assert stretch_positions(old.half(), 16).dtype == torch.float16


def clip_file(folder: Path, kind: str = "clip", length: int = 77) -> tuple[Path, dict[str, torch.Tensor]]:
    """A whole CLIP's file, as released, and its text side's tensors."""
    state = ClipTextEncoder(ClipTextConfig(**SMALL, context_length=length)).state_dict()  # type: ignore[arg-type]
    text = {k: random(*v.shape, seed=n) * 0.1 for n, (k, v) in enumerate(state.items())}
    prefix = "text." if kind == "open_clip" else ""
    whole = {f"{prefix}{k}": v for k, v in text.items()}
    whole |= {
        f"{prefix}text_projection": random(32, 16),
        "logit_scale": torch.tensor(4.6),
        "visual.conv1.weight": random(4, 3, 2, 2),
    }
    if kind == "long":
        whole["positional_embedding_res"] = random(length, 32, seed=50)
        text["positional_embedding"] = torch.cat([text["positional_embedding"][:20], whole["positional_embedding_res"][20:]])
    torch.save({"state_dict": whole}, folder / "clip.pt")
    return folder / "clip.pt", text


@pytest.mark.parametrize(("kind", "length"), [("clip", 77), ("open_clip", 77), ("long", 248)])
def test_clip_text__takes_the_text_side_of_a_file(tmp_path: Path, kind: str, length: int) -> None:
    file, text = clip_file(tmp_path, kind, length)
    model = ClipTextEncoder(ClipTextConfig(**SMALL, context_length=length, weights=file))  # type: ignore[arg-type]
    for name, value in model.state_dict().items():
        assert torch.equal(value, text[name]), name


def test_clip_text__stretches_a_files_positions_to_the_context(tmp_path: Path) -> None:
    file, text = clip_file(tmp_path)
    model = ClipTextEncoder(ClipTextConfig(**SMALL, context_length=512, weights=file)).eval()  # type: ignore[arg-type]
    torch.testing.assert_close(model.positional_embedding.data, stretch_positions(text["positional_embedding"], 512))
    short = ClipTextEncoder(ClipTextConfig(**SMALL, weights=file)).eval()  # type: ignore[arg-type]
    tokens = torch.randint(1, 98, (2, 18), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    with torch.no_grad():
        # Up to the twentieth token nothing has changed.
        torch.testing.assert_close(model(tokens, mask).pooled, short(tokens, mask).pooled)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"extra.weight": torch.zeros(2)}, "extra.weight"),
        ({"ln_final.bias": None}, "not in the file: ln_final.bias"),
        ({"token_embedding.weight": torch.zeros(50, 32)}, r"token_embedding.weight \(50, 32\) for \(99, 32\)"),
    ],
)
def test_clip_text__a_file_that_does_not_fit_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    file, _ = clip_file(tmp_path)
    state = torch.load(file, weights_only=True)["state_dict"]
    for name, value in change.items():
        state.pop(name, None)
        if value is not None:
            state[name] = value
    torch.save(state, file)
    with pytest.raises(WeightsError, match=said):
        ClipTextEncoder(ClipTextConfig(**SMALL, weights=file))  # type: ignore[arg-type]


def test_clip_text__reads_a_long_report_to_its_end() -> None:
    """512 tokens: the last sentence of a report counts, which a context of 77 never sees."""
    report = "The lungs are clear and the heart is normal in size. " * 25
    torch.manual_seed(0)
    for length, differs in ((77, False), (512, True)):
        tokenizer = ClipTokenizer(ClipTokenizerConfig(context_length=length))
        model = ClipTextEncoder(ClipTextConfig(embed_dim=32, depth=2, num_heads=2, context_length=length)).eval()
        with torch.no_grad():
            a, b = model(*tokenizer([report + "No nodule.", report + "Left nodule."])).pooled
        assert torch.equal(a, b) != differs
