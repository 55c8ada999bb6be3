"""Matrices of one byte a weight: close, small, and refused when they do not fit."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from imagebart import ImageBART
from imagebart.int8 import SCALE, quantise_rows, restore_rows


def test_no_weight_moves_by_more_than_half_a_step():
    W = (
        torch.randn(7, 50, generator=torch.Generator().manual_seed(0))
        * torch.logspace(-6, 3, 7)[:, None]
    )
    back = restore_rows(quantise_rows({"W": W}))["W"]
    step = W.abs().amax(1, keepdim=True) / 127
    assert ((back - W).abs() <= step * 0.5001).all()
    assert torch.equal(back.abs().amax(1), W.abs().amax(1))  # the largest stays what it is


def test_a_row_of_zeros_stays_zero():
    assert not restore_rows(quantise_rows({"W": torch.zeros(2, 3)}))["W"].any()


def test_only_matrices_of_floats_take_one_byte():
    tensors = {"bias": torch.rand(3), "kernel": torch.rand(2, 2, 3, 3), "row": torch.arange(4)}
    stored = quantise_rows(tensors)
    assert stored.keys() == tensors.keys()
    assert stored["bias"].dtype == stored["kernel"].dtype == torch.float16
    assert torch.equal(stored["row"], tensors["row"])


def test_a_model_stored_as_int8_is_a_quarter_and_the_same_as_its_restored_weights(tiny, tmp_path):
    tiny.save_pretrained(tmp_path / "whole")
    tiny.save_pretrained(tmp_path / "int8", dtype=torch.int8)
    model = ImageBART.from_pretrained(tmp_path / "int8", device="cpu")
    for t, denoiser in tiny.denoisers.items():
        own = model.denoisers[t].state_dict()
        for name, x in restore_rows(quantise_rows(denoiser.state_dict())).items():
            assert torch.equal(own[name], x.to(own[name].dtype)), name
        sizes = [
            sum(x.nbytes for x in load_file(tmp_path / kind / f"scale_{t}.safetensors").values())
            for kind in ("int8", "whole")
        ]
        assert sizes[0] < 0.35 * sizes[1]  # a quarter, and the scales of short rows
    assert {x.dtype for x in model.parameters()} == {torch.float32}


def test_the_vqgan_of_an_int8_model_is_that_of_a_float16_model(tiny, tmp_path):
    tiny.save_pretrained(tmp_path / "int8", dtype=torch.int8)
    tiny.save_pretrained(tmp_path / "half", dtype=torch.float16)
    stored = [load_file(tmp_path / kind / "vqgan.safetensors") for kind in ("int8", "half")]
    assert stored[0].keys() == stored[1].keys()
    assert all(torch.equal(x, stored[1][name]) for name, x in stored[0].items())


@pytest.mark.parametrize("fault", ["no scales", "scales of one row", "scales of nothing"])
def test_bytes_without_their_scales_are_refused(tiny, tmp_path, fault):
    tiny.save_pretrained(tmp_path, dtype=torch.int8)
    path = tmp_path / "scale_2.safetensors"
    stored = load_file(path)
    name = next(name for name in stored if name.endswith(SCALE))
    if fault == "no scales":
        del stored[name]
    elif fault == "scales of one row":
        stored[name] = stored[name][:1]
    else:
        stored["nobody" + SCALE] = torch.ones(2, 1)
    save_file(stored, path)
    with pytest.raises(ValueError, match=r"scale_2\.safetensors: .* must be"):
        ImageBART.from_pretrained(tmp_path, device="cpu")
