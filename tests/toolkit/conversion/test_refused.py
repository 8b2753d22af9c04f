"""What is not read or not converted, and what the message says: code in files, damage, configs without a class."""

import base64
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from tests.toolkit.conversion import originals as old
from toolkit.checkpoints.tensors import chunks
from toolkit.conversion import original
from toolkit.conversion.convert import write
from toolkit.conversion.pickles import read_torch


class Evil:
    """Makes a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def read(folder: Path) -> original.Original:
    kind = original.find(folder)
    assert kind is not None
    read_: original.Original = kind.read(folder)
    return read_


@pytest.fixture
def olmo(tmp_path: Path) -> Path:
    return old.write_olmo(tmp_path / "olmo", old.model("olmo"))


@pytest.fixture
def core(tmp_path: Path) -> Path:
    made = old.model("olmo2")
    return old.write_core(tmp_path / "core", made, old.core_config(made), old.bands)


def test_code_in_a_model_file_does_not_run(olmo: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    state = torch.load(olmo / "model.pt")
    torch.save(state | {"x": Evil(mark)}, olmo / "model.pt")
    with pytest.raises(ValueError, match=r"model.pt is not read: its pickle asks for \S+, which no weights need"):
        read(olmo)
    assert not mark.exists()
    torch.load(olmo / "model.pt", weights_only=False)
    assert mark.exists()  # the file does run code where it is let


def test_code_in_a_key_or_in_the_metadata_does_not_run(olmo: Path, core: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    key = base64.urlsafe_b64encode(pickle.dumps(Evil(mark))).decode()
    save_file({key: torch.zeros(2)}, olmo / "model.safetensors")
    with pytest.raises(ValueError, match="key .* of .*model.safetensors is not read"):
        read(olmo)
    path = core / "model_and_optim" / ".metadata"
    path.write_bytes(pickle.dumps({"x": pickle.loads(path.read_bytes()), "y": Evil(mark)}))
    with pytest.raises(ValueError, match=r"\.metadata is not read: its pickle asks for pathlib.Path"):
        read(core)
    assert not mark.exists()


@pytest.mark.parametrize(
    "name", ["builtins.eval", "builtins.getattr", "os.system", "torch.load", "torch.storage._load"]
)
def test_no_other_name_is_looked_up(name: str, tmp_path: Path) -> None:
    module, _, attribute = name.rpartition(".")
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("archive/data.pkl", f"c{module}\n{attribute}\n(S'1'\ntR.".encode())
    with pytest.raises(ValueError, match=f"asks for {name},"):
        read_torch(tmp_path / "x.pt")


def test_paths_in_the_metadata_stay_in_the_folder(core: Path, tmp_path: Path) -> None:
    path = core / "model_and_optim" / ".metadata"
    (core / "outside.distcp").write_bytes((core / "model_and_optim" / "__0_0.distcp").read_bytes())
    tree = pickle.loads(path.read_bytes())
    for info in tree.storage_data.values():
        info.relative_path = "../outside.distcp"
    path.write_bytes(pickle.dumps(tree))
    with pytest.raises(ValueError, match="names '../outside.distcp', which is not there"):
        read(core)


def test_damaged_files(olmo: Path, core: Path, tmp_path: Path) -> None:
    data = (olmo / "model.pt").read_bytes()
    (olmo / "model.pt").write_bytes(data[:-5000])
    with pytest.raises(ValueError, match="model.pt is truncated or not torch's zip format"):
        read(olmo)
    torch.save({"x": torch.zeros(3)}, olmo / "model.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="not torch's zip format"):
        read(olmo)
    torch.save({"x": torch.zeros(3, 4).T}, olmo / "model.pt")
    with pytest.raises(ValueError, match="'x' is a transposed or strided view"):
        read(olmo)
    torch.save({"epoch": 3}, olmo / "model.pt")
    with pytest.raises(ValueError, match="holds no state dict of tensors"):
        read(olmo)
    path = core / "model_and_optim" / ".metadata"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=".metadata is damaged: its pickle cannot be read"):
        read(core)
    path.write_bytes(whole)
    (core / "model_and_optim" / "__2_0.distcp").unlink()
    with pytest.raises(ValueError, match="names '__2_0.distcp', which is not there"):
        read(core)


def test_a_rank_that_is_missing_or_listed_twice(core: Path) -> None:
    path = core / "model_and_optim" / ".metadata"
    tree = pickle.loads(path.read_bytes())
    gone = next(index for index in tree.storage_data if index.fqn == "model.embeddings.weight" and index.offset[0])
    kept = {index: info for index, info in tree.storage_data.items() if index != gone}
    path.write_bytes(pickle.dumps(type(tree)(tree.state_dict_metadata, storage_data=kept)))
    with pytest.raises(ValueError, match="'embeddings.weight' .* is not covered exactly once by its 2 pieces"):
        read(core)
    twice = type(gone)(gone.fqn, torch.Size([1, 0]), 7)
    path.write_bytes(
        pickle.dumps(type(tree)(tree.state_dict_metadata, storage_data={**kept, twice: tree.storage_data[gone]}))
    )
    with pytest.raises(ValueError, match="is not covered exactly once by its 3 pieces"):
        read(core)


def test_views_into_one_storage(tmp_path: Path) -> None:
    whole = torch.arange(60.0).view(6, 10)
    torch.save({"a": whole[2:4], "b": {"c": whole, "n": 3}, "p": torch.nn.Parameter(whole[5])}, tmp_path / "x.pt")
    found = read_torch(tmp_path / "x.pt")
    assert torch.equal(next(chunks(found["a"])), whole[2:4].flatten()) and found["b"]["n"] == 3
    assert torch.equal(next(chunks(found["b"]["c"])), whole.flatten()) and found["a"].shape == (2, 10)
    assert torch.equal(next(chunks(found["p"])), whole[5])


def test_weights_that_the_config_does_not_describe(olmo: Path, core: Path, tmp_path: Path) -> None:
    state = torch.load(olmo / "model.pt")
    torch.save(state | {"transformer.extra.weight": torch.zeros(3)}, olmo / "model.pt")
    with pytest.raises(ValueError, match="takes 0 of the 3 elements of 'transformer.extra.weight'"):
        write(read(olmo), tmp_path, None, report=lambda done, total: None)
    state["transformer.blocks.1.att_proj.weight"] = torch.zeros(96, 32)
    torch.save(state, olmo / "model.pt")
    with pytest.raises(
        ValueError, match=r"blocks.1.att_proj.weight' has shape \(96, 32\); its config.yaml describes \(64"
    ):
        read(olmo)
    config = json.loads((core / "config.json").read_text())
    config["model"]["n_layers"] = 4
    (core / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="lacks 11 weights that its config describes, first 'blocks.3.attention.w_q"):
        read(core)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alibi", True), ("rope", False), ("activation_type", "gelu"), ("block_type", "llama"), ("include_bias", True),
        ("embedding_layer_norm", True), ("scale_logits", True), ("norm_after", True), ("attention_layer_norm", True),
        ("layer_norm_eps", 1e-6), ("layer_norm_type", "rms"), ("n_kv_heads", 3), ("multi_query_attention", True),
        ("rope_theta", 0), ("window_size", 4096), ("clip_output", 3.0),
    ],
)  # fmt: skip
def test_fields_of_olmo_without_a_counterpart(field: str, value: Any, olmo: Path) -> None:
    config = yaml.safe_load((olmo / "config.yaml").read_text())
    config["model"][field] = value
    (olmo / "config.yaml").write_text(yaml.safe_dump(config))
    named = {"layer_norm_type": "norm_after"}.get(
        field, field
    )  # RMS norms are those of OLMo 2, which has more of its own
    with pytest.raises(
        ValueError, match=rf"config.yaml: model\.{'.*' if field == 'multi_query_attention' else ''}{named} "
    ):
        read(olmo)


def test_what_a_config_leaves_out_is_what_the_original_takes(olmo: Path) -> None:
    config = yaml.safe_load((olmo / "config.yaml").read_text())
    del config["model"]["rope"]
    (olmo / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=r"model.rope is False \(it is not set; .*: positions are learned"):
        read(olmo)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("embedding_norm", {"name": "rms"}), ("embed_scale", 16.0), ("block_pattern", ["a"]), ("name", "normalized"),
        ("something_new", 1), ("block.name", "default"), ("block.attention_residual_alpha", 0.5),
        ("block.feed_forward_moe", {"num_experts": 8}), ("block.feed_forward.bias", None),
        ("block.feed_forward.activation", "gelu_tanh"), ("block.attention.clip_qkv", 8.0),
        ("block.attention.use_head_qk_norm", True), ("block.attention.gate", {"granularity": "headwise"}),
        ("block.attention.attention_sinks", True), ("block.attention.scalable_softmax", True),
        ("block.attention.name", "normalized"), ("block.attention.bias", True), ("block.attention.qk_norm", None),
        ("block.attention.rope.name", "complex"), ("block.attention.rope.no_global_rope", True),
        ("block.attention.rope.partial_rotary_factor", 0.5), ("block.attention.rope.scaling", {"_CLASS_": "x.Other"}),
        ("block.attention.sliding_window", {"pattern": [0]}), ("block.attention.softmax_scale", 0.1),
        ("lm_head.bias", True), ("lm_head.layer_norm", None), ("block.layer_norm.name", "l2_norm"),
    ],
)  # fmt: skip
def test_fields_of_olmo_core_without_a_counterpart(path: str, value: Any, core: Path) -> None:
    config = json.loads((core / "config.json").read_text())
    *parents, name = path.split(".")
    place = config["model"]
    for parent in parents:
        place = place[parent]
    place[name] = value
    (core / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"config.json: model\.{path.replace('.', '[.]')}\b"):
        read(core)


def test_settings_that_differ_between_layers(core: Path) -> None:
    config = json.loads((core / "config.json").read_text())
    model = config["model"]
    faults: list[tuple[Any, str]] = [
        (lambda block: block["layer_norm"].update(eps=1e-3), "norms of epsilon"),
        (lambda block: block["attention"]["rope"].update(theta=5), "layers of full_attention differ"),
        (lambda block: block["feed_forward"].update(hidden_size=5), "layers differ in heads, widths or epsilon"),
    ]
    for change, message in faults:
        other = json.loads(json.dumps(model["block"]))
        change(other)
        changed = config | {"model": model | {"block_overrides": {"1": other}}}
        (core / "config.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=message):
            read(core)
    model["block"]["attention"] |= old.sliding(8, 16, last=False)
    (core / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"windows of \[8, 16\] tokens; Hugging Face has one"):
        read(core)


def test_a_tied_head_that_was_saved_as_well(tmp_path: Path) -> None:
    made = old.model("olmo2")
    config = old.core_config(made)
    config["model"]["tie_word_embeddings"] = True
    folder = old.write_core(tmp_path / "core", made, config)
    with pytest.raises(ValueError, match="tie_word_embeddings is true, and lm_head.w_out differs"):
        read(folder)
