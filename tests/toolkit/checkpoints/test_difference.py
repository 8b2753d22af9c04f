"""Differences give every file back bit for bit: random tensors of all types, NaN payloads, bases that fit in part."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from toolkit.checkpoints.forms import difference
from toolkit.checkpoints.forms.difference import CHUNK, decode, encode, estimate, paired, restore
from toolkit.checkpoints.tensors import BYTES, TORCH, read_header

SPECIAL = (
    {  # bits of -0, infinities, quiet and signalling NaNs with payloads, denormals, the largest, 1 and its neighbour
        "BF16": [0x8000, 0x7F80, 0xFF80, 0x7FC0, 0x7F81, 0xFFAB, 0x0001, 0x807F, 0x7F7F, 0x3F80, 0x3F81],
        "F16": [0x8000, 0x7C00, 0xFC00, 0x7E00, 0x7C01, 0xFDEF, 0x0001, 0x83FF, 0x7BFF, 0x3C00, 0x3C01],
        "F32": [
            1 << 31,
            0x7F800000,
            0xFF800000,
            0x7FC00000,
            0x7F800001,
            0xFFABCDEF,
            1,
            0x807FFFFF,
            0x7F7FFFFF,
            0x3F800000,
        ],
        "F64": [
            1 << 63,
            0x7FF << 52,
            0xFFF << 52,
            0x7FF8 << 48,
            (0x7FF << 52) + 1,
            (0xFFF << 52) + 0xABCDEF,
            1,
            0x3FF << 52,
        ],
    }
)


def tensor(rng: np.random.Generator, dtype: str, shape: tuple[int, ...], like: torch.Tensor | None) -> torch.Tensor:
    """Random bits, special values strewn in; or `like` with some of its elements moved a little."""
    count, width = int(np.prod(shape)), BYTES[dtype]
    bits = rng.integers(0, 256, count * width, dtype=np.uint8).view(f"u{width}").copy()
    if like is not None and like.element_size() == width:
        near = like.reshape(-1).view(torch.uint8).numpy().view(f"u{width}")
        bits = np.where(rng.random(count) < 0.5, near, near + rng.integers(0, 9, count).astype(f"u{width}"))
    for place in rng.integers(0, count, 12) if count and dtype in SPECIAL else ():
        bits[place] = rng.choice(np.array(SPECIAL[dtype], f"u{width}"))
    if dtype == "BOOL":
        bits &= 1
    return torch.frombuffer(bytearray(bits) or bytearray(width), dtype=getattr(torch, TORCH[dtype]))[:count].reshape(
        shape
    )


def pair(rng: np.random.Generator, count: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A base and tuned tensors: most of the same shape and type, some not, some not there; some empty or a scalar."""
    base, tuned = {}, {}
    for number in range(count):
        name, dtype = f"t{number}", str(rng.choice(list(BYTES)))
        shape = tuple(int(n) for n in rng.integers(0 if number % 9 == 0 else 1, 24, rng.integers(0, 3)))
        kind = number % 8
        other = str(rng.choice(list(BYTES))) if kind == 1 else dtype
        first = tensor(rng, other, (*shape, 2) if kind == 2 else shape, None)
        if kind != 3:
            base[name] = first
        tuned[name] = tensor(rng, dtype, shape, first if kind > 3 else None)
    return base, tuned


@pytest.mark.filterwarnings("error")
def test_a_thousand_tensors_come_back_bit_for_bit(tmp_path: Path) -> None:
    seen = set()
    for seed in range(10):
        base, tuned = pair(np.random.default_rng(seed), 100)
        save_file(base, tmp_path / "base"), save_file(tuned, tmp_path / "tuned")
        tensors = read_header(tmp_path / "base")
        encode(tmp_path / "tuned", tensors, tmp_path / "change")
        decode(tmp_path / "change", tensors, tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == (tmp_path / "tuned").read_bytes()
        seen |= {(t.dtype, n in base, t.shape) for n, t in tuned.items()}
    assert {dtype for dtype, _, _ in seen} == {getattr(torch, word) for word in TORCH.values()}
    assert {there for _, there, _ in seen} == {True, False} and () in {shape for _, _, shape in seen}
    assert any(0 in shape for _, _, shape in seen)


def test_chunks_and_threads_change_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = {"w": tensor(rng, "BF16", (3, CHUNK // 2 + 5), None), "b": torch.zeros(CHUNK)}
    save_file(base, tmp_path / "base")
    save_file({**base, "w": tensor(rng, "BF16", (3, CHUNK // 2 + 5), base["w"])}, tmp_path / "tuned")
    tensors = read_header(tmp_path / "base")
    changes = []
    for threads in (1, 3):
        encode(tmp_path / "tuned", tensors, tmp_path / "change", threads)
        changes.append((tmp_path / "change").read_bytes())
        decode(tmp_path / "change", tensors, tmp_path / "back", threads)
        assert (tmp_path / "back").read_bytes() == (tmp_path / "tuned").read_bytes()
    assert changes[0] == changes[1] and len(changes[0]) < (tmp_path / "tuned").stat().st_size / 2
    told = estimate(tmp_path / "tuned", tensors) * (tmp_path / "tuned").stat().st_size
    assert told == pytest.approx(len(changes[0]), rel=0.05) and paired(tmp_path / "tuned", tensors) == 1


def test_small_changes_of_either_sign_take_little_room(tmp_path: Path) -> None:
    """A step of one unit in the last place, up or down, also across zero and across a power of two, is 1 or 2."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(CHUNK, generator=generator, dtype=torch.float32).bfloat16()
    bits = base.view(torch.int16)
    moved = (bits + torch.randint(-1, 2, bits.shape, generator=generator).short()).view(torch.bfloat16)
    save_file({"w": base}, tmp_path / "base"), save_file({"w": moved}, tmp_path / "tuned")
    encode(tmp_path / "tuned", read_header(tmp_path / "base"), tmp_path / "change")
    assert (tmp_path / "change").stat().st_size < 0.16 * 2 * CHUNK  # three equal values are 1.58 of 16 bits: 0.1


def test_a_base_of_another_type_is_cast(tmp_path: Path) -> None:
    """What was trained in fp32 from bf16 weights is near them; casting back and forth finds that."""
    base = torch.randn(CHUNK, generator=torch.Generator().manual_seed(0)).bfloat16()
    save_file({"w": base}, tmp_path / "base")
    save_file({"w": base.float()}, tmp_path / "up")
    save_file({"w": base.float().half()}, tmp_path / "half")
    base[:3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    save_file({"w": base}, tmp_path / "odd")
    for name, least in (("up", 0.01), ("half", 0.01)):
        for below in ("base", "odd"):
            encode(tmp_path / name, read_header(tmp_path / below), tmp_path / "change")
            decode(tmp_path / "change", read_header(tmp_path / below), tmp_path / "back")
            assert (tmp_path / "back").read_bytes() == (tmp_path / name).read_bytes()
            assert (tmp_path / "change").stat().st_size < least * (tmp_path / name).stat().st_size + 1000


def made(tmp_path: Path) -> tuple[Path, Path]:
    """A folder with a change, and its base."""
    base, tuned = pair(np.random.default_rng(5), 30)
    for name in ("base", "tuned", "out"):
        (tmp_path / name).mkdir()
    save_file(base, tmp_path / "base" / "model.safetensors"), save_file(tuned, tmp_path / "model.safetensors")
    encode(
        tmp_path / "model.safetensors",
        read_header(tmp_path / "base" / "model.safetensors"),
        tmp_path / "tuned" / "model.safetensors.difference",
    )
    return tmp_path / "tuned", tmp_path / "base"


def test_restoring_gives_the_model_and_what_lies_beside_it(tmp_path: Path) -> None:
    folder, base = made(tmp_path)
    for name in ("config.json", "base.json", "artifact.json", "log.txt"):
        (folder / name).write_text("{}")
    restore(folder, base, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_another_base_is_refused(tmp_path: Path) -> None:
    folder, base = made(tmp_path)
    weights = base / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ValueError, match="does not give back the file .* the base is not bit for bit what it was"):
        restore(folder, base, tmp_path / "out")
    save_file({"else": torch.zeros(1)}, weights)
    with pytest.raises(ValueError, match="which the base does not have: it is another model"):
        restore(folder, base, tmp_path / "out")


def test_damage_is_named_wherever_it_is(tmp_path: Path) -> None:
    folder, base = made(tmp_path)
    change = folder / "model.safetensors.difference"
    data = change.read_bytes()
    rng = random.Random(0)
    for _ in range(60):
        at = rng.randrange(len(data))
        change.write_bytes(data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :])
        try:
            restore(folder, base, tmp_path / "out")
        except ValueError as error:
            assert "model.safetensors" in str(error)
        else:  # a name in the table, or a bit that zstd does not look at: the file is the same
            assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    for cut in (0, 4, 100, len(data) - 1):
        change.write_bytes(data[:cut])
        with pytest.raises(ValueError, match="is damaged"):
            restore(folder, base, tmp_path / "out")


def test_a_file_with_a_gap_is_refused(tmp_path: Path) -> None:
    header = {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "b": {"dtype": "U8", "shape": [1]}}
    text = json.dumps({**header, "b": {**header["b"], "data_offsets": [2, 3]}}).encode()
    (tmp_path / "gap").write_bytes(len(text).to_bytes(8, "little") + text + b"abc")
    with pytest.raises(ValueError, match="gap or an overlap before tensor 'b'"):
        encode(tmp_path / "gap", {}, tmp_path / "out")


def test_it_takes_any_bits_as_integers() -> None:
    """The map to ordered integers is its own inverse on all 65,536 patterns, and keeps the order of the numbers."""
    bits = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    assert (difference._ordered(difference._ordered(bits)) == bits).all()
    numbers = torch.frombuffer(bytearray(bits), dtype=torch.bfloat16).float()
    order = torch.from_numpy(difference._ordered(bits).view(np.int16).astype(np.int32))
    real = ~numbers.isnan()
    by_bits = numbers[real][order[real].argsort()]
    assert bool((by_bits.diff()[~by_bits.diff().isnan()] >= 0).all())
