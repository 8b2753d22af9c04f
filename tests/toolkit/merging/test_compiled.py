"""The compiled passes over bf16 against torch's operations in fp32, on any bits that a file may hold."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from toolkit.checkpoints.tensors import read_folder
from toolkit.merging.compiled import sums
from toolkit.merging.methods.delta import add, delta
from toolkit.merging.stream import Chunk, Place, write


def any_bits(seed: int, count: int = 300_000) -> torch.Tensor:
    """NaN with payloads, infinities, denormals and zeros of both signs among them."""
    bits = torch.from_numpy(np.random.default_rng(seed).integers(0, 1 << 16, count, dtype=np.uint16))
    bits[:4] = torch.tensor([0x0000, 0x8000, 0x7F80, 0x7FC1], dtype=torch.uint16)
    return bits.view(torch.bfloat16)


@pytest.mark.parametrize("scale", [1.0, 0.3, -2.0, 0.0])
def test_a_delta_of_any_bits_is_that_of_torch(scale: float) -> None:
    trained, base, instruct = map(any_bits, range(3))
    expected = add(trained.float(), instruct.float() - base.float(), scale).bfloat16()
    bits = [x.clone().view(torch.uint16).numpy() for x in (trained, base, instruct)]
    found = torch.from_numpy(delta(bits[0], bits[1], bits[2], scale)).view(torch.bfloat16)
    good = expected.isfinite()
    assert 0.3 < good.float().mean() < 1
    assert torch.equal(found.view(torch.uint16)[good], expected.view(torch.uint16)[good])
    assert not found[~good].isfinite().any()


def test_sums_of_halves_are_those_of_the_same_numbers_in_fp32() -> None:
    models = [torch.randn(50_001, generator=torch.Generator().manual_seed(i)).bfloat16() for i in range(3)]
    halves = sums(*(x.view(torch.uint16).numpy() for x in models))
    assert halves == pytest.approx(sums(*(x.float().numpy() for x in models)), rel=1e-6)
    assert halves[1] == pytest.approx(float(models[0].double().square().sum()), rel=1e-6)


def test_pieces_threads_and_types_change_no_bit(tmp_path: Path) -> None:
    """A tensor that one model holds in fp32 goes through fp32; the others stay as they are, and give the same bits."""
    models = {}
    for number, role in enumerate(("trained", "base", "instruct")):
        random = torch.Generator().manual_seed(number)
        tensors = {name: torch.randn(700, 100, generator=random).bfloat16() for name in ("a", "b", "c")}
        (tmp_path / role).mkdir()
        wide = {"b": tensors["b"].float()} if role == "base" else {}
        save_file(tensors | wide, tmp_path / role / "model.safetensors")
        models[role] = read_folder(tmp_path / role)
    seen: dict[str, set[str]] = {}

    def combine(place: Place, chunks: list[Chunk]) -> Chunk:
        seen.setdefault(place.name, set()).update(str(chunk.dtype) for chunk in chunks)
        return delta(chunks[0], chunks[1], chunks[2], 0.7)

    found = []
    for number, (halves, threads, piece) in enumerate([(False, 1, 1 << 18), (True, 1, 1 << 18), (True, 3, 4096)]):
        out = tmp_path / str(number)
        out.mkdir()
        write(models, combine, out, None, halves=halves, threads=threads, piece=piece)
        found.append((out / "model.safetensors").read_bytes())
    assert found[0] == found[1] == found[2]
    assert seen["a"] == seen["c"] == {"torch.float32", "uint16"} and seen["b"] == {"torch.float32"}
    assert load_file(tmp_path / "1" / "model.safetensors")["b"].dtype is torch.bfloat16


def test_what_is_not_finite_is_named_where_it_stands(tmp_path: Path) -> None:
    models = {}
    for role, value in (("trained", 3e38), ("base", -3e38), ("instruct", 3e38)):
        tensor = torch.ones(5000, dtype=torch.bfloat16)
        tensor[4321] = value
        (tmp_path / role).mkdir()
        save_file({"w": tensor}, tmp_path / role / "model.safetensors")
        models[role] = read_folder(tmp_path / role)
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="element 4,321 of the merged tensor 'w' is not finite as bfloat16"):
        write(models, lambda place, c: delta(c[0], c[1], c[2], 1.0), tmp_path / "out", None, halves=True, piece=4096)
