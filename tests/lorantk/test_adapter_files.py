"""Saved adapters in three libraries' names, and files that must be refused with one clear sentence."""

import json
import math
import struct

import pytest
import torch

from lorantk.adapter_files import HEADER_LIMIT, read_adapter

save_file = pytest.importorskip("safetensors.torch").save_file
A, B = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)), torch.ones(16, 4)
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": False, "init_lora_weights": True}
PEFT = {"base_model.model.q.lora_A.weight": A, "base_model.model.q.lora_B.weight": B}


def folder(path, tensors=PEFT, config=CONFIG, **changes):
    path.mkdir(exist_ok=True)
    save_file(tensors, path / "adapter_model.safetensors")
    if config is not None:
        (path / "adapter_config.json").write_text(json.dumps(config | changes))
    return path


def file_with_header(path, header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


@pytest.mark.parametrize(
    ("naming", "names", "layer"),
    [
        ("PEFT", ("base_model.model.h.0.q.lora_A.weight", "base_model.model.h.0.q.lora_B.weight"), "h.0.q"),
        ("PEFT", ("h.0.q.lora_A.default.weight", "h.0.q.lora_B.default.weight"), "h.0.q"),
        ("PEFT", ("unet.mid.to_q.lora_A.weight", "unet.mid.to_q.lora_B.weight"), "unet.mid.to_q"),
        ("diffusers", ("unet.mid.to_q.lora.down.weight", "unet.mid.to_q.lora.up.weight"), "unet.mid.to_q"),
        ("diffusers", ("mid.processor.to_q_lora.down.weight", "mid.processor.to_q_lora.up.weight"), "mid.to_q"),
        ("kohya", ("lora_unet_mid_to_q.lora_down.weight", "lora_unet_mid_to_q.lora_up.weight"), "lora_unet_mid_to_q"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stored", [True, False])
def test_three_namings_with_an_alpha_tensor_or_the_callers(tmp_path, naming, names, layer, stored):
    tensors = dict(zip(names, (A, B), strict=True))
    if stored:
        root = names[0].rpartition(".lora")[0] or names[0].rpartition("_lora")[0]
        tensors[f"{root}.alpha"] = torch.tensor(2.0)
    save_file(tensors, tmp_path / "x.safetensors")
    found = read_adapter(tmp_path / "x.safetensors", None if stored else 6.0)
    assert (found.naming, list(found.adapters)) == (naming, [layer])
    assert found.adapters[layer][2] == (0.5 if stored else 1.5)
    assert found.scaling_from == ("alpha tensors" if stored else "--alpha")
    assert torch.equal(found.adapters[layer][0], A)
    assert torch.equal(found.adapters[layer][1], B)


def test_convolutions_of_kohya_are_flattened(tmp_path):
    tensors = {"c.lora_down.weight": torch.ones(4, 8, 3, 3), "c.lora_up.weight": torch.ones(16, 4, 1, 1)}
    save_file(tensors, tmp_path / "x.safetensors")
    down, up, _ = read_adapter(tmp_path / "x.safetensors", 4.0).adapters["c"]
    assert (down.shape, up.shape) == ((4, 72), (16, 4))


@pytest.mark.parametrize(
    ("changes", "scaling"),
    [
        ({}, 2.0), ({"use_rslora": True}, 4.0), ({"alpha_pattern": {"q": 1}}, 0.25), ({"alpha_pattern": {"k": 1}}, 2.0),
        ({"alpha_pattern": {"x.q": 1}}, 2.0), ({"rank_pattern": {"q": 4}, "r": 7}, 2.0),
    ],
)  # fmt: skip
def test_scaling_from_the_configuration(tmp_path, changes, scaling):
    found = read_adapter(folder(tmp_path / "a", **changes))
    assert found.adapters["q"][2] == scaling
    assert found.scaling_from == "adapter_config.json"


def test_scaling_from_the_metadata_of_diffusers(tmp_path):
    metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 12})}
    tensors = {"unet.q.lora_A.weight": A, "unet.q.lora_B.weight": B}
    save_file(tensors, tmp_path / "x.safetensors", metadata)
    found = read_adapter(tmp_path / "x.safetensors")
    assert (found.adapters["unet.q"][2], found.scaling_from) == (3.0, "lora_adapter_metadata")


def test_layers_are_in_the_order_of_the_model(tmp_path):
    tensors = {f"h.{i}.q.lora_{side}.weight": M for i in (10, 2, 1) for side, M in (("A", A.clone()), ("B", B.clone()))}
    save_file(tensors, tmp_path / "x.safetensors")
    assert list(read_adapter(tmp_path / "x.safetensors", 1.0).adapters) == ["h.1.q", "h.2.q", "h.10.q"]


def tensors_of(**changes):
    """A file of one layer q, with tensors replaced, or left out where None."""
    found = {"q.lora_A.weight": A, "q.lora_B.weight": B} | {k.replace("__", "."): v for k, v in changes.items()}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


NAN = torch.where(torch.arange(128).reshape(4, 32) == 5, math.nan, 1.0)
WRONG_TENSORS = {
    "no B": (tensors_of(q__lora_B__weight=None), "must have both A and B; B is missing"),
    "no A": (tensors_of(q__lora_A__weight=None), "must have both A and B; A is missing"),
    "NaN": (tensors_of(q__lora_A__weight=NAN), "lora_A.weight' must be finite"),
    "Inf": (tensors_of(q__lora_B__weight=torch.full((16, 4), math.inf)), "lora_B.weight' must be finite"),
    "integers": (tensors_of(q__lora_A__weight=torch.ones(4, 32, dtype=torch.int8)), "must be a floating point tensor"),
    "rank 0": (tensors_of(q__lora_A__weight=torch.ones(0, 32), q__lora_B__weight=torch.ones(16, 0)), "none of them 0"),
    "flat": (tensors_of(q__lora_A__weight=torch.ones(128)), "without gathering"),
    "ranks differ": (tensors_of(q__lora_B__weight=torch.ones(16, 5)), "as many rows in A as columns in B"),
    "both sides twice": (tensors_of(q__lora_A__default__weight=A.clone()), "must hold one A for layer 'q'"),
    "DoRA": (tensors_of(q__lora_magnitude_vector__weight=torch.ones(16)), "belongs to another method"),
    "LoHa": (tensors_of(q__hada_w1_a=torch.ones(4, 4)), "belongs to another method"),
    "no adapter": ({"wte.weight": A}, "must hold a LoRA adapter"),
    "nothing": ({}, "it holds no tensor"),
    "alpha NaN": (tensors_of(q__alpha=torch.tensor(math.nan)), "alpha' must be finite"),
    "alpha 0": (tensors_of(q__alpha=torch.tensor(0.0)), "scaling of layer 'q' must be finite and above"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_TENSORS)
def test_wrong_tensors_are_refused(tmp_path, name):
    tensors, words = WRONG_TENSORS[name]
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises((ValueError, TypeError), match=words):
        read_adapter(tmp_path / "x.safetensors", None if name.startswith("alpha") else 8.0)


WRONG_CONFIGS = {
    "another method": ({"peft_type": "LOHA"}, "must have peft_type 'LORA'"),
    "DoRA": ({"use_dora": True}, "sets use_dora"),
    "rank as text": ({"r": "4"}, "r in .* must be an int"),
    "rank 0": ({"r": 0}, "r in .* must be at least 1"),
    "another rank": ({"r": 5}, "has rank 4 in the file but 5"),
    "no alpha": ({"lora_alpha": None}, "lora_alpha in .* must be a real number"),
    "alpha NaN": ({"lora_alpha": math.nan}, "lora_alpha in .* must be finite"),
    "pattern": ({"alpha_pattern": {"(": 1}}, "must be a regular expression"),
    "patterns as a list": ({"rank_pattern": [1]}, "must map layer names"),
}


@pytest.mark.parametrize("name", WRONG_CONFIGS)
def test_wrong_configurations_are_refused(tmp_path, name):
    changes, words = WRONG_CONFIGS[name]
    with pytest.raises((ValueError, TypeError), match=words):
        read_adapter(folder(tmp_path / "a", **changes))


def test_a_scaling_that_is_not_given_is_not_guessed(tmp_path):
    path = folder(tmp_path / "a", config=None)
    with pytest.raises(ValueError, match="--alpha 4 gives s = 1"):
        read_adapter(path)
    assert read_adapter(path, 4.0).adapters["q"][2] == 1.0
    with pytest.raises(ValueError, match="leave alpha out"):
        read_adapter(folder(tmp_path / "a"), 4.0)
    for alpha in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="alpha must be finite and above"):
            read_adapter(path, alpha)


def test_pickles_and_other_paths_are_refused(tmp_path):
    for name in ("adapter_model.bin", "lora.pt"):
        (tmp_path / name).write_bytes(b"\x80\x04")
        with pytest.raises(ValueError, match="is a pickle, which can run code"):
            read_adapter(tmp_path / name)
    with pytest.raises(ValueError, match="is a pickle"):
        read_adapter(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="must end in"):
        read_adapter(tmp_path / "notes.txt")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_adapter(tmp_path / "absent")
    for name in ("x", "y"):
        save_file({"a": A}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match="give the file of the adapter"):
        read_adapter(tmp_path)


ENTRY = {"dtype": "F32", "shape": [4, 32], "data_offsets": [0, 512]}
HOSTILE = {
    "empty": (b"", "no safetensors file or a truncated one"),
    "a header of 2^62 bytes": (struct.pack("<Q", 2**62), "announce a header of"),
    "a header that is too large": (struct.pack("<Q", HEADER_LIMIT + 1) + bytes(HEADER_LIMIT + 1), "at most"),
    "no JSON": (b"{", "must hold JSON"),
    "deep JSON": (b"[" * 100000, "must hold JSON"),
    "a list": (b"[1]", "must hold one JSON object"),
    "a name twice": (b'{"a": %s, "a": %s}' % ((json.dumps(ENTRY).encode(),) * 2), "'a' stands there twice"),
    "offsets beyond the file": ({"q.lora_A.weight": ENTRY | {"data_offsets": [0, 2**40]}}, "is damaged"),
    "a shape that does not fit": ({"q.lora_A.weight": ENTRY | {"shape": [2**40, 2**40]}}, "is damaged"),
    "an unknown dtype": ({"q.lora_A.weight": ENTRY | {"dtype": "PICKLE"}}, "is damaged"),
    "no shape": ({"q.lora_A.weight": {"dtype": "F32", "data_offsets": [0, 512]}}, "is damaged"),
    "a name that is not printable": ({"q\x1b[2J.lora_A.weight": ENTRY}, "must have printable tensor names"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(tmp_path, name):
    content, words = HOSTILE[name]
    path = tmp_path / "x.safetensors"
    if name in ("empty", "a header of 2^62 bytes", "a header that is too large"):
        path.write_bytes(content)
    else:
        file_with_header(path, content, bytes(512))
    with pytest.raises(ValueError, match=words):
        read_adapter(path, 1.0)


def test_a_truncated_file_is_refused(tmp_path):
    path = folder(tmp_path / "a") / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is damaged"):
        read_adapter(tmp_path / "a")
