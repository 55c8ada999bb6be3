"""`python -m imagebart import`: what is published comes in whole, and nothing else comes in."""

import copyreg
import functools
import http.server
import io
import operator
import os
import pickle
import random
import resource
import shutil
import struct
import subprocess
import sys
import threading
import time
import types
import zipfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from released import (
    FIXTURE_VQGAN,
    encoder_decoder_shapes,
    gpt_shapes,
    random_tensors,
    scale_file,
    stored,
)
from safetensors.torch import load_file

from imagebart.__main__ import main
from imagebart.checkpoint import sha256_of
from imagebart.denoiser import DenoiserConfig
from imagebart.folders import load_vqgan
from imagebart.model import ImageBART
from imagebart.presets import PRESETS
from imagebart.released import importing
from imagebart.released.importing import PUBLISHED, download, import_released
from imagebart.released.official import ReleasedTensors, convert_denoiser, convert_vqgan
from imagebart.released.untrusted import StoredTensor, UntrustedFileError, read_checkpoint

ROOT = Path(__file__).parents[1]
FIXTURES = Path(__file__).parent / "fixtures" / "official_a"
K, N, T = 40, 16, 3
BETWEEN = dict(width=24, heads=1, head_width=64, encoder_depth=1, decoder_depth=1)
LAST = dict(width=24, heads=2, head_width=12, encoder_depth=1, decoder_depth=1)


@pytest.fixture
def small(monkeypatch):
    """The released names, with models of a size for tests behind them."""
    shared = dict(grid=(4, 4), axial_positions=False)
    row = replace(
        PRESETS["ffhq-4"],
        vqgan=FIXTURE_VQGAN,
        codes_in_use=K,
        alpha_bar=(1.0, 0.5, 0.0),
        between=DenoiserConfig(**BETWEEN, **shared, output="residual"),
        last=DenoiserConfig(**LAST, **shared, output="plain", bias=True, head_bias=False),
    )
    monkeypatch.setitem(PRESETS, "ffhq-4", row)
    for name in ("vqgan-f16-1024", "vqgan-f16-16384"):
        monkeypatch.setitem(PUBLISHED, name, replace(PUBLISHED[name], vqgan=FIXTURE_VQGAN))


def tensors_of(number: int) -> dict[str, torch.Tensor]:
    """The state dict of scale 1 or 2 of the small model."""
    first_stage = load_file(FIXTURES / "vqgan_weights.safetensors")
    if number == 1:
        shapes = encoder_decoder_shapes(24, 1, (1, 1), K, K, N + 1, N, scales=T - 1)
    else:
        shapes = gpt_shapes(24, 1, K, K, N)
    file = scale_file(random_tensors(shapes, number), [1.0, 0.5, 0.0], first_stage)
    for key in ("transformer.log_scalors", "transformer_ema.log_scalors"):
        if key in file:
            file[key] = torch.tensor([0.3, 0.0])
    return file


def save(tensors: dict, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": tensors, "global_step": 3, "epoch": 1}, path)
    return path


@pytest.fixture
def scales(tmp_path, small) -> Path:
    """A folder with the small model's scales, as published."""
    for number in (1, 2):
        save(tensors_of(number), tmp_path / "models" / "small" / f"scale{number}.ckpt")
    return tmp_path / "models" / "small"


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out" / "model"


def zipped(folder: Path, path: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"small_zip/{file.name}")
        archive.writestr("small_zip/README.txt", "hello")
    return path


def assert_nothing_written(out: Path) -> None:
    assert not out.exists()
    assert not out.parent.exists() or not list(out.parent.iterdir())


# ── what is whole comes in ────────────────────────────────────────────────────────────────────


def test_a_chain_is_imported_loads_and_samples(scales, out, tmp_path, capsys):
    main(["import", "ffhq-4", "--from", str(scales), "--out", str(out)])
    assert str(out) in capsys.readouterr().out
    model = ImageBART.from_pretrained(out, device="cpu")
    assert (model.T, model.K, model.grid) == (T, K, (4, 4))
    names = {"config.json", "README.md", "vqgan.safetensors", "scale_2.safetensors"}
    assert {path.name for path in out.iterdir()} == names | {"scale_3.safetensors"}
    x = torch.randint(K, (1, N), generator=torch.Generator().manual_seed(0))
    for number in (1, 2):
        file, t = stored(tensors_of(number), tmp_path), number + 1
        config = PRESETS["ffhq-4"].denoiser(t)
        direct = convert_denoiser(file, config, model.diffusion, t, ema=True)
        assert torch.equal(model.denoisers[t](x, x), direct(x, x))
    assert len(model.sample(2, seed=1)) == 2


def test_the_card_says_where_it_came_from_and_what_is_not_known(scales, out):
    import_released("ffhq-4", out, source=scales)
    card = (out / "README.md").read_text()
    for number in (1, 2):
        assert sha256_of(scales / f"scale{number}.ckpt") in card
    assert "averaged" in card and "no licence" in card and "`scale1.ckpt`" in card


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_gives_what_its_folder_gives(scales, out, tmp_path, method):
    archive = zipped(scales, tmp_path / "small.zip", method)
    import_released("ffhq-4", out, source=archive)
    import_released("ffhq-4", tmp_path / "other", source=scales)
    for file in ("vqgan", "scale_2", "scale_3"):
        paths = [folder / f"{file}.safetensors" for folder in (out, tmp_path / "other")]
        assert sha256_of(paths[0]) == sha256_of(paths[1])
    assert sha256_of(archive) in (out / "README.md").read_text()
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_raw_takes_the_weights_last_trained(scales, out, tmp_path):
    main(["import", "ffhq-4", "--from", str(scales), "--out", str(out), "--raw"])
    written = load_file(out / "scale_3.safetensors")["head.weight"]
    assert torch.equal(written, tensors_of(2)["transformer.head.weight"])
    import_released("ffhq-4", tmp_path / "averaged", source=scales)
    averaged = load_file(tmp_path / "averaged" / "scale_3.safetensors")["head.weight"]
    assert torch.equal(averaged, tensors_of(2)["transformer_ema.headweight"])
    assert not torch.equal(averaged, written)


def vqgan_file(path: Path) -> Path:
    tensors = load_file(FIXTURES / "vqgan_weights.safetensors")
    tensors.pop("quantize.used")  # only a scale's file holds it
    tensors["loss.discriminator.main.0.weight"] = torch.ones(4, 3, 4, 4)
    return save(tensors, path)


def test_a_vqgan_alone_is_imported_and_starts_a_chain(tmp_path, small, out):
    import_released("vqgan-f16-1024", out, source=vqgan_file(tmp_path / "last.ckpt"))
    vqgan = load_vqgan(out)
    assert vqgan.K == 64 and vqgan.quantiser.used is None
    command = [sys.executable, "train/encode.py", "--vqgan", out, "--out", tmp_path / "tokens"]
    options = "--count 6 --validation 6 --workers 0 --batch 3 --precision fp32 --device cpu"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, *options.split()], cwd=ROOT, check=True, env=environment)
    shrunk = load_vqgan(tmp_path / "tokens" / "vqgan")
    assert 1 <= shrunk.K < 64  # the codes that these six pictures use


def test_the_right_one_of_several_vqgans_is_taken(tmp_path, small, out):
    for name in ("vqgan-imagenet", "vqgan-ffhq"):
        vqgan_file(tmp_path / "vqgan" / f"{name}.ckpt")
    (tmp_path / "vqgan" / "vqgan-ffhq.ckpt").write_bytes(b"another model")
    import_released("vqgan-f16-16384", out, source=tmp_path / "vqgan")
    with pytest.raises(ValueError, match="must hold one checkpoint, or one called"):
        import_released("vqgan-f16-1024", tmp_path / "other", source=tmp_path / "vqgan")


# ── what Lightning keeps beside the weights is left alone ─────────────────────────────────────

BESIDE = [
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.base.ContainerMetadata",
]


@contextmanager
def classes_called(names: list[str]):
    """Classes importable under these names, while the block lasts."""
    before, made = dict(sys.modules), {}
    for name in names:
        module, _, short = name.rpartition(".")
        base = dict if "Dict" in short else object
        made[short] = type(short, (base,), {"__module__": module})
        parts = module.split(".")
        for i in range(len(parts)):
            path = ".".join(parts[: i + 1])
            sys.modules.setdefault(path, types.ModuleType(path)).__path__ = []
        setattr(sys.modules[module], short, made[short])
    try:
        yield made
    finally:
        sys.modules.clear()
        sys.modules.update(before)


def test_lightnings_own_data_is_inert(tmp_path):
    path = tmp_path / "lightning.ckpt"
    with classes_called(BESIDE) as made:
        config = made["DictConfig"]({"lr": 1e-4})
        config.metadata = made["ContainerMetadata"]()
        beside = {"callbacks": {made["ModelCheckpoint"]: {"best": torch.tensor(1.0)}}}
        beside |= {"hyper_parameters": made["AttributeDict"](model=config)}
        torch.save({"state_dict": {"w": torch.arange(6.0).view(2, 3)}, **beside}, path)
    assert not [name for name in sys.modules if name.startswith("omegaconf")]
    tensors = read_checkpoint(path)
    assert list(tensors) == ["w"]
    assert torch.equal(tensors["w"].read(), torch.arange(6.0).view(2, 3))


def test_every_kind_of_tensor_is_read_as_it_was_saved(tmp_path):
    torch.manual_seed(0)
    shared = torch.randn(10)
    tensors = {
        "plain": torch.randn(3, 4),
        "transposed": torch.randn(3, 4).T,
        "part": shared[2:5],
        "other part": shared[5:9].view(2, 2),
        "scalar": torch.tensor(7, dtype=torch.int32),
        "empty": torch.zeros(0, 3),
        "half": torch.randn(5).half(),
        "parameter": torch.nn.Parameter(torch.randn(2)),
        "flags": torch.tensor([True, False]),
    }
    torch.save(tensors, tmp_path / "x.ckpt")
    read = read_checkpoint(tmp_path / "x.ckpt")
    for name, x in tensors.items():
        assert read[name].shape == x.shape and read[name].dtype == x.dtype
        assert torch.equal(read[name].read(), x.data), name


# ── evil pickles run nothing ──────────────────────────────────────────────────────────────────


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def text(string: str) -> bytes:
    data = string.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def evil_pickles(marker: Path) -> dict[str, bytes]:
    """Pickles each of which, unpickled, would create `marker`."""
    code = f"open({str(marker)!r}, 'w').close()"
    shell = f"touch {marker}"
    dumps = functools.partial(pickle.dumps, protocol=2)
    run = b"cbuiltins\nexec\n"
    argument = text(code)
    weights = {"w": [1.0]}
    nested = pickle.dumps(Call(exec, code))
    return {
        "os.system": dumps({"state_dict": Call(os.system, shell)}),
        "subprocess": dumps({"state_dict": Call(subprocess.check_call, ["touch", str(marker)])}),
        "exec": dumps(Call(exec, code)),
        "eval": dumps({"state_dict": weights, "epoch": Call(eval, f"exec({code!r})")}),
        "in a key": dumps({"state_dict": weights, Call(exec, code): 1}),
        "deep inside": dumps({"state_dict": {"a": [({"b": [Call(exec, code)]},)]}}),
        "getattr": dumps(Call(getattr, Call(__import__, "os"), "system")).rstrip(b".")
        + (b"\x8c" + bytes([len(shell)]) + shell.encode() + b"\x85R."),
        "pickle in a pickle": dumps({"state_dict": Call(pickle.loads, nested)}),
        "partial": dumps(Call(operator.call, functools.partial(exec, code))),
        "torch's own loader": dumps(
            {"state_dict": Call(torch.storage._load_from_bytes, saved(Call(exec, code)))}
        ),
        "old protocol": pickle.dumps(Call(exec, code), protocol=0),
        "INST": b"(" + argument + b"ibuiltins\nexec\n.",
        "OBJ": b"(" + run + argument + b"o.",
        "from the memo": run + b"q\x07" + b"0" + b"h\x07" + argument + b"\x85R.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93" + argument + b"\x85R.",
        "a dotted name": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + text(shell) + b"\x85R.",
        "NEWOBJ": b"csubprocess\nPopen\n" + b"]" + text("touch") + b"a" + text(str(marker))
        + b"a\x85\x81" + b"0" + b"csubprocess\nPopen\n]" + text("touch") + b"a"
        + text(str(marker)) + b"a\x85R.",
        "the extension registry": b"\x82\xf0" + argument + b"\x85R.",
        "a storage": b"(" + text("storage") + run + argument + b"\x85R" + text("0") + text("cpu")
        + b"K\x01tQ.",
        "__setstate__": dumps({"state_dict": weights, "x": Stateful(code)}),
    }  # fmt: skip


class Stateful:
    """Runs its state when it is set."""

    def __init__(self, code: str):
        self.code = code

    def __setstate__(self, state: dict) -> None:
        exec(state["code"])


def saved(thing) -> bytes:
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    return buffer.getvalue()


def checkpoint_of(data: bytes, path: Path) -> Path:
    """A checkpoint around a pickle."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", bytes(4))
        archive.writestr("archive/version", "3\n")
    return path


class Trusting(pickle.Unpickler):
    """What a reader does that trusts the file."""

    def persistent_load(self, pid):
        return None


EVIL = list(evil_pickles(Path("marker")))


@pytest.fixture
def registered():
    copyreg.add_extension("builtins", "exec", 0xF0)
    yield
    copyreg.remove_extension("builtins", "exec", 0xF0)
    copyreg.clear_extension_cache()


@pytest.mark.parametrize("name", EVIL)
def test_evil_pickles_run_nothing(name, tmp_path, small, out, registered):
    marker = tmp_path / "executed"
    data = evil_pickles(marker)[name]
    with_teeth = Trusting(io.BytesIO(data))
    try:
        thing = with_teeth.load()
        if isinstance(thing, subprocess.Popen):
            thing.wait()
    except Exception:
        pass
    assert marker.exists(), "this pickle would have run nothing anyway"
    marker.unlink()

    path = checkpoint_of(data, tmp_path / "scale1.ckpt")
    with pytest.raises(
        UntrustedFileError, match=r"got a reference to|must not use (EXT1|PUT|INST)"
    ):
        read_checkpoint(path)
    with pytest.raises(ValueError, match="is not what"):
        import_released("vqgan-f16-1024", out, source=path)
    assert not marker.exists()
    assert_nothing_written(out)


def test_an_evil_file_in_the_old_format_runs_nothing(tmp_path):
    marker = tmp_path / "executed"
    path = tmp_path / "old.ckpt"
    code = f"open({str(marker)!r}, 'w').close()"
    torch.save(Call(exec, code), path, _use_new_zipfile_serialization=False)
    torch.load(path, weights_only=False)
    assert marker.exists()
    marker.unlink()
    with pytest.raises(UntrustedFileError, match=r"before 1\.6.*torch\.save"):
        read_checkpoint(path)
    assert not marker.exists()


def test_refusing_names_the_reference(tmp_path):
    path = checkpoint_of(pickle.dumps(Call(os.system, "true"), protocol=2), tmp_path / "a.ckpt")
    with pytest.raises(UntrustedFileError, match=r"a\.ckpt: .* reference to posix\.system"):
        read_checkpoint(path)


# ── attacks that run nothing but would cost memory or lie ─────────────────────────────────────

REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x01tQ"


def number(i: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", i)


def tensor(shape: list[int], stride: list[int], offset: int = 0) -> bytes:
    """A pickled tensor over the storage of one number."""
    sizes = b"".join(b"(" + b"".join(map(number, part)) + b"t" for part in (shape, stride))
    return REBUILD + b"(" + STORAGE + number(offset) + sizes + b"\x89Nt" + b"R"


def named_tensor(pickled: bytes) -> bytes:
    return b"\x80\x02}" + text("w") + pickled + b"s."


HUGE = 2**40
ATTACKS = {
    "a stride of zero": named_tensor(tensor([HUGE], [0])),
    "beyond the storage": named_tensor(tensor([1], [1], offset=5)),
    "before the storage": named_tensor(tensor([1], [1], offset=-1)),
    "a negative shape": named_tensor(tensor([-3], [1])),
    "numbers that overflow": named_tensor(tensor([2**62, 2**62], [2**62, 2**62])),
    "shape without strides": named_tensor(tensor([1, 1], [1])),
    "a tensor altered": named_tensor(tensor([1], [1]) + b"}" + text("shape") + number(9) + b"sb"),
    "a function altered": REBUILD + b"N}" + text("__defaults__") + b"Ns\x86b.",
    "a storage altered": STORAGE + b"}" + text("count") + number(9) + b"sb.",
    "a storage that is not there": named_tensor(tensor([1], [1])).replace(text("0"), text("7")),
    "a storage outside": named_tensor(tensor([1], [1])).replace(text("0"), text("../data.pkl")),
    "a storage of another size": named_tensor(tensor([1], [1])).replace(b"K\x01tQ", b"K\x02tQ"),
    "a huge memo": b"\x80\x02}r" + struct.pack("<I", 2**26) + b".",
    "a huge byte array": b"\x80\x05\x96" + struct.pack("<Q", HUGE) + b".",
    "a huge string": b"\x80\x04\x8d" + struct.pack("<Q", HUGE) + b".",
    "nothing": b"",
    "noise": bytes(range(256)),
    "an empty stack": b"\x80\x02.",
    "not a state dict": pickle.dumps([1, 2, 3], protocol=2),
    "no tensors": pickle.dumps({"state_dict": {"w": 1}}, protocol=2),
    "a tensor without a name": b"\x80\x02}" + number(3) + tensor([1], [1]) + b"s.",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_are_refused_before_they_cost_anything(name, tmp_path):
    path = checkpoint_of(ATTACKS[name], tmp_path / "a.ckpt")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UntrustedFileError, match=r"a\.ckpt: "):
        for stored in read_checkpoint(path).values():
            stored.read()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_tuples_in_tuples_do_not_end_the_process(tmp_path):
    """A key of 300 000 tuples, one in another: Python would hash it on C's stack."""
    path = checkpoint_of(b"\x80\x02})" + 300_000 * b"\x85" + b"Ns.", tmp_path / "a.ckpt")
    with pytest.raises(UntrustedFileError, match="its pickle must have keys of text"):
        read_checkpoint(path)


def endless_pickles() -> dict[str, bytes]:
    """Pickles of at most a few megabytes that take minutes where their operations have no bound."""
    keys = [(i * (2**61 - 1)).to_bytes(10, "little") for i in range(1, 60_000)]  # of one hash
    keys = [b"\x8a\x0a" + key for key in keys]
    long = b"X" + struct.pack("<I", 4_000_000) + 4_000_000 * b"a"
    one = b"(" + number(1) + b"t"
    many = b"(" + STORAGE + number(0) + one + one + 200_000 * b"N" + b"tq\x00"
    build = REBUILD + b"q\x01"
    dimensions = b"(" + 200_000 * b"\x8a\x06\xff\xff\xff\xff\xff\x7f"
    return {
        "keys that collide": b"\x80\x02}(" + b"N".join(keys) + b"Nu.",
        "keys that collide, one by one": b"\x80\x02}" + b"Ns".join(keys) + b"Ns.",
        "members that collide": b"\x80\x04\x8f(" + b"".join(keys) + b"\x90.",
        "keys that are numbers": b"\x80\x02}" + b"".join(number(i) + b"Ns" for i in range(3000)),
        "a shape of many dimensions": REBUILD
        + (b"(" + STORAGE + number(0) + dimensions + b"t" + dimensions + b"t\x89NtR."),
        "equal keys of megabytes": b"\x80\x02}" + long + b"q\x00Ns" + long + b"q\x01Ns"
        + 150_000 * b"h\x00Ns" + b".",
        "calls of many values": many + build + b"0" + 60_000 * b"h\x01h\x00R0" + b".",
        "more operations than any": b"\x80\x02]" + 3_000_000 * b"N0" + b".",
    }  # fmt: skip


@pytest.mark.parametrize("name", endless_pickles())
def test_no_pickle_takes_long(name, tmp_path):
    path = checkpoint_of(endless_pickles()[name], tmp_path / "a.ckpt")
    start = time.process_time()
    with pytest.raises(UntrustedFileError, match=r"a\.ckpt: (its pickle|tensors) must"):
        read_checkpoint(path)
    assert time.process_time() - start < 2


def test_text_of_a_file_is_cut_and_printable(tmp_path):
    """A terminal obeys escapes, and nobody reads a name of megabytes."""
    for name in ("\x1b[2J\x1b]0;owned\x07", "a\nb", "\u202egnp.exe", "x" * 8_000_000):
        data = b"\x80\x04" + text("os") + text(name) + b"\x93."
        tensors = named_tensor(tensor([1], [1])).replace(text("w"), text(name[:900]))
        for pickled in (data, tensors, tensors.replace(text("0"), text(name[:900]))):
            path = checkpoint_of(pickled, tmp_path / "a.ckpt")
            with pytest.raises(ValueError) as raised:
                convert_vqgan(read_checkpoint(path), FIXTURE_VQGAN)
            assert str(raised.value).isprintable() and len(str(raised.value)) < 600
    path = tmp_path / "b.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl\x1b[2J", b"")
    with pytest.raises(UntrustedFileError, match=r"data\.pkl\\x1b\[2J is not"):
        read_checkpoint(path)


def test_names_of_tensors_left_over_are_printable():
    any_tensor = object.__new__(StoredTensor)
    source = ReleasedTensors({"\x1b[2J" + 900 * "a": any_tensor})
    with pytest.raises(ValueError, match=r"got 1 more, such as \\x1b\[2Ja{95}…$"):
        source.require_nothing_else("none")


def test_an_archive_of_many_entries_is_refused_at_once(tmp_path):
    path = tmp_path / "a.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    whole = path.read_bytes()
    at = whole.index(b"PK\x01\x02")
    entry, end = whole[at : whole.index(b"PK\x05\x06")], whole[whole.index(b"PK\x05\x06") :]
    size = len(entry) * 400_000
    end = end[:8] + b"\xff\xff\xff\xff" + struct.pack("<I", size) + end[16:]
    path.write_bytes(whole[:at] + 400_000 * entry + end)
    start = time.process_time()
    with pytest.raises(UntrustedFileError, match="entries must be listed in"):
        read_checkpoint(path)
    with pytest.raises(ValueError, match="must be a whole zip archive, entries must be listed in"):
        import_released("ffhq-2", tmp_path / "out", source=path.rename(tmp_path / "a.zip"))
    assert time.process_time() - start < 2


def test_one_storage_does_not_stand_for_a_thousand_tensors(tmp_path):
    path, numbers = tmp_path / "a.ckpt", torch.zeros(100_000)
    torch.save({f"w{i}": numbers for i in range(1000)}, path)
    with pytest.raises(UntrustedFileError, match="tensors must not share storages"):
        read_checkpoint(path)


def test_a_tensor_by_hand_is_read(tmp_path):
    """The attacks above differ from this one by what is wrong with them."""
    path = checkpoint_of(named_tensor(tensor([1], [1])), tmp_path / "a.ckpt")
    assert torch.equal(read_checkpoint(path)["w"].read(), torch.zeros(1))


def test_archives_that_lie_are_refused(tmp_path):
    good = named_tensor(tensor([1], [1]))
    for name, method, twice in (
        ("deflated", zipfile.ZIP_DEFLATED, False),
        ("two of a name", zipfile.ZIP_STORED, True),
    ):
        path = tmp_path / f"{name}.ckpt"
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("archive/data.pkl", good)
            archive.writestr("archive/data/0", bytes(4))
            if twice:
                with pytest.warns(UserWarning, match="Duplicate"):
                    archive.writestr("archive/data/0", bytes(4))
        with pytest.raises(UntrustedFileError, match="entries must"):
            read_checkpoint(path)


def test_a_flipped_bit_is_found(tmp_path):
    path = tmp_path / "x.ckpt"
    torch.save({"w": torch.full((1000,), 1.5)}, path)
    data = bytearray(path.read_bytes())
    at = data.find(struct.pack("<f", 1.5) * 10)
    data[at + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(UntrustedFileError, match="damaged"):
        read_checkpoint(path)["w"].read()


def test_damaged_files_fail_in_one_way_only(tmp_path):
    """Seeded mutations: a file is read as it was, or refused by an UntrustedFileError."""
    path, torn = tmp_path / "x.ckpt", tmp_path / "torn.ckpt"
    weights = {"a": torch.arange(12.0).view(3, 4), "b": torch.arange(5)}
    torch.save({"state_dict": weights, "epoch": 3}, path)
    whole, draw, outcomes = path.read_bytes(), random.Random(0), []
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        if draw.random() < 0.2:
            data = data[: draw.randrange(len(data))]
        torn.write_bytes(data)
        try:
            read = {name: stored.read() for name, stored in read_checkpoint(torn).items()}
        except UntrustedFileError:
            outcomes.append("refused")
            continue
        outcomes.append("read")
        assert read.keys() == weights.keys()
        assert all(torch.equal(read[name], x) for name, x in weights.items())
    assert min(outcomes.count("read"), outcomes.count("refused")) > 20


# ── bad input: one sentence, nothing written ──────────────────────────────────────────────────


def truncated(scales: Path) -> Path:
    archive = zipped(scales, scales.parent / "a.zip")
    archive.write_bytes(archive.read_bytes()[:-1000])
    return archive


def torn_entry(scales: Path) -> Path:
    archive = zipped(scales, scales.parent / "a.zip", zipfile.ZIP_STORED)
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 255
    archive.write_bytes(data)
    return archive


def bomb(scales: Path) -> Path:
    with zipfile.ZipFile(scales.parent / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in (1, 2):
            archive.writestr(f"scale{i}.ckpt", bytes(20 * 2**20))
    return scales.parent / "a.zip"


def changed(key: str, change, number: int = 1):
    def spoil(scales: Path) -> Path:
        tensors = tensors_of(number)
        tensors[key] = change(tensors[key])
        save(tensors, scales / f"scale{number}.ckpt")
        return scales

    return spoil


def moved(source: str, target: str):
    def spoil(scales: Path) -> Path:
        shutil.copy(scales / source, scales / target)
        return scales

    return spoil


def removed(scales: Path) -> Path:
    (scales / "scale2.ckpt").unlink()
    return scales


def halved(scales: Path) -> Path:
    path = scales / "scale1.ckpt"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return scales


def without_average(scales: Path) -> Path:
    kept = {k: x for k, x in tensors_of(2).items() if not k.startswith("transformer_ema")}
    save(kept, scales / "scale2.ckpt")
    return scales


AVERAGED = "transformer_ema.decodertoken_embweight"
CODES = "first_stage_model.quantize.embedding.weight"
BAD = {
    "a truncated archive": (truncated, "zip archive"),
    "an archive with a torn entry": (torn_entry, "whole zip archive|damaged"),
    "a zip bomb": (bomb, "must unpack to at most"),
    "a truncated checkpoint": (halved, r"scale1\.ckpt is not what ffhq-4 needs.* part of one"),
    "nothing there": (lambda scales: scales / "nowhere", "got nothing there"),
    "a text file": (lambda scales: Path(__file__), "zip archive or a folder of scales"),
    "one scale alone": (lambda scales: scales / "scale1.ckpt", r"got none for scale2\.ckpt"),
    "a missing scale": (removed, r"got none for scale2\.ckpt"),
    "one scale too many": (moved("scale1.ckpt", "scale3.ckpt"), "got 3 scales"),
    "two of one scale": (moved("scale1.ckpt", "../scale1.ckpt"), None),
    "another scale's file": (moved("scale1.ckpt", "scale2.ckpt"), r"scale2\.ckpt is not what"),
    "wrong shapes": (changed(AVERAGED, lambda x: x[:, 1:]), r"of shape \(40, 24\), got \(40, 23\)"),
    "other numbers": (changed(AVERAGED, lambda x: x.long()), "floating-point"),
    "NaN weights": (changed(AVERAGED, lambda x: x * torch.nan), "finite"),
    "NaN in the VQGAN": (
        changed("first_stage_model.decoder.conv_in.weight", lambda x: x * torch.inf),
        "finite",
    ),
    "another schedule": (changed("alphacum", lambda x: x**2), "alphacum must be"),
    "another codebook": (changed(CODES, lambda x: x + 1, number=2), "share one codebook"),
    "too few codes": (
        changed("first_stage_model.quantize.used", lambda x: x[1:]),
        "must have 40 codes in use, got 39",
    ),
    "no codes": (
        changed("first_stage_model.quantize.used", lambda x: x[:0]),
        "must list rows of the codebook, one at least",
    ),
    "codes out of range": (changed("first_stage_model.quantize.used", lambda x: x + 60), "rows of"),
    "no averaged weights": (without_average, r"transformer_ema\.\*.*no such tensors"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_and_nothing_written(name, scales, out, capsys):
    spoil, sentence = BAD[name]
    source = spoil(scales)
    if sentence is None:  # the folder above holds scale1.ckpt twice
        source, sentence = scales.parent, r"got 2 of them for scale1\.ckpt"
    with pytest.raises(SystemExit) as stopped:
        main(["import", "ffhq-4", "--from", str(source), "--out", str(out)])
    message = str(stopped.value)
    assert message.startswith("error: ") and "\n" not in message
    with pytest.raises(ValueError, match=sentence):
        import_released("ffhq-4", out, source=source)
    assert_nothing_written(out)


def test_a_folder_with_something_in_it_is_left_alone(scales, out):
    out.mkdir(parents=True)
    (out / "mine").write_text("precious")
    with pytest.raises(ValueError, match="new or an empty folder"):
        import_released("ffhq-4", out, source=scales)
    assert [path.name for path in out.iterdir()] == ["mine"]
    (out / "mine").unlink()
    import_released("ffhq-4", out, source=scales)  # an empty one is taken


def test_an_unknown_name_lists_the_known(out):
    with pytest.raises(ValueError, match="must be one of ffhq-2, ffhq-4, churches"):
        import_released("ffhq-9", out)


@pytest.mark.parametrize("packed", [True, False])
def test_a_full_disk_is_one_sentence_and_nothing_written(scales, out, tmp_path, packed):
    """Files may not grow beyond a megabyte: unpacking stops, or writing the VQGAN does."""
    source, limit = zipped(scales, tmp_path / "small.zip") if packed else scales, 2**20
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(ValueError, match="full disk"):
            import_released("ffhq-4", out, source=source)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_nothing_written(out)


def test_an_interrupt_leaves_nothing(scales, out):
    def interrupt(label: str, done: int, total: int) -> None:
        if label.startswith("converting scale2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_released("ffhq-4", out, source=scales, progress=interrupt)
    assert_nothing_written(out)


# ── downloads ─────────────────────────────────────────────────────────────────────────────────


class Handler(http.server.BaseHTTPRequestHandler):
    """A server of one file that may lose the connection, and knows ranges."""

    def do_GET(self):
        server, start = self.server, 0
        server.requests.append(dict(self.headers))
        if self.path != "/small.zip":
            return self.send_error(404, "gone")
        wanted = self.headers.get("Range")
        if wanted and self.headers.get("If-Range") == server.version:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if start >= len(server.data):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(server.data) - start))
        self.send_header("ETag", server.version)
        self.end_headers()
        stop = server.lose_at.pop(0) if server.lose_at else len(server.data)
        self.wfile.write(server.data[start:stop])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(scales, tmp_path, monkeypatch):
    monkeypatch.delenv("IMAGEBART_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    server.data = zipped(scales, tmp_path / "small.zip").read_bytes()
    server.version, server.requests, server.lose_at = '"1"', [], []
    server.url = f"http://127.0.0.1:{server.server_port}/small.zip"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_download_is_converted_and_then_forgotten(server, out, tmp_path):
    seen = []
    import_released("ffhq-4", out, url=server.url, progress=lambda *p: seen.append(p))
    assert ImageBART.from_pretrained(out, device="cpu").T == T
    assert ("downloading", len(server.data), len(server.data)) in seen
    assert server.url in (out / "README.md").read_text()
    assert not (tmp_path / "cache" / "imagebart" / "ffhq-4").exists()


def test_a_lost_connection_is_said_and_resumed(server, out):
    server.lose_at = [len(server.data) // 3, 2 * len(server.data) // 3]
    for _ in range(2):
        with pytest.raises(ValueError, match=r"small\.zip: cannot be fetched .*--from"):
            import_released("ffhq-4", out, url=server.url)
        assert_nothing_written(out)
    import_released("ffhq-4", out, url=server.url)
    ranges = [request.get("Range") for request in server.requests]
    assert ranges == [
        None,
        f"bytes={len(server.data) // 3}-",
        f"bytes={2 * len(server.data) // 3}-",
    ]
    assert out.exists()


def test_a_file_that_changed_meanwhile_is_fetched_anew(server, tmp_path):
    server.lose_at = [1000]
    with pytest.raises(ValueError, match="connection was lost"):
        download(server.url, tmp_path / "d")
    server.version, server.data = '"2"', b"another file, all of it"
    assert download(server.url, tmp_path / "d").read_bytes() == server.data


def test_a_download_that_was_whole_already_is_not_fetched_twice(server, tmp_path):
    first = download(server.url, tmp_path / "d").read_bytes()
    assert download(server.url, tmp_path / "d").read_bytes() == first == server.data
    assert len(server.requests) == 1
    part = tmp_path / "d" / "archive.part"  # whole, but the rename was lost
    (tmp_path / "d" / "archive").rename(part)
    assert download(server.url, tmp_path / "d").read_bytes() == server.data


def test_an_address_that_does_not_answer_is_said(server, out):
    for url in (server.url + "x", "http://127.0.0.1:1/nothing.zip"):
        with pytest.raises(ValueError, match=rf"{url}: cannot be fetched \(.*\); .*--url"):
            import_released("ffhq-4", out, url=url)
    with pytest.raises(ValueError, match="must begin with http"):
        import_released("ffhq-4", out, url="file:///etc/passwd")
    assert_nothing_written(out)


def test_a_download_that_is_no_model_is_removed(server, out, tmp_path):
    """A page that says the archive has moved, sent as if it were the archive."""
    archive, server.data = server.data, b"<html>moved</html>"
    with pytest.raises(ValueError, match=r"must be a zip .*; the downloaded file was removed, try"):
        import_released("ffhq-4", out, url=server.url)
    assert not (tmp_path / "cache" / "imagebart" / "ffhq-4").exists()
    assert_nothing_written(out)
    server.data = archive
    import_released("ffhq-4", out, url=server.url)
    assert ImageBART.from_pretrained(out, device="cpu").T == T


def test_a_download_that_wants_other_options_is_kept(server, out, tmp_path, monkeypatch):
    def refuse(*_):
        raise ValueError("a released scale must hold transformer_ema.*, got no such tensors")

    with monkeypatch.context() as patch:
        patch.setattr(importing, "_import_chain", refuse)
        with pytest.raises(ValueError, match=r"got no such tensors; the download is kept: --from "):
            import_released("ffhq-4", out, url=server.url)
    assert_nothing_written(out)
    import_released("ffhq-4", out, url=server.url)
    assert len(server.requests) == 1


def test_a_download_is_kept_if_the_model_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="must be a folder that can be written, got ") as refusal:
        import_released("ffhq-4", tmp_path / "file" / "model", url=server.url)
    assert "removed" not in str(refusal.value)
    import_released("ffhq-4", tmp_path / "model", url=server.url)
    assert len(server.requests) == 1


HOLD = """
import sys
from imagebart.checkpoint import run_lock
with run_lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_imports_do_not_write_into_one_download(server, out, tmp_path):
    command = [sys.executable, "-c", HOLD, tmp_path / "cache" / "imagebart" / "ffhq-4"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen(command, env=environment, **pipes) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="one run at a time must use a folder"):
            import_released("ffhq-4", out, url=server.url)
        assert server.requests == []
        other.stdin.close()
    import_released("ffhq-4", out, url=server.url)


# ── the released size ─────────────────────────────────────────────────────────────────────────

MEASURE = """
import resource, sys
from imagebart.__main__ import main
main(["import", "ffhq-4", "--from", sys.argv[1], "--out", sys.argv[2]])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_a_full_size_model_comes_in_within_twice_its_largest_file(tmp_path):
    """FFHQ-4 at its released size, random weights: 7.7 GB of files."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    make = [sys.executable, ROOT / "tests" / "make_released.py", "ffhq-4", tmp_path / "scales"]
    subprocess.run(make, check=True, env=environment)
    largest = max(path.stat().st_size for path in (tmp_path / "scales").iterdir())
    command = [sys.executable, "-c", MEASURE, tmp_path / "scales", tmp_path / "model"]
    done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
    peak = int(done.stdout.split()[-1])
    print(f"largest file {largest / 1e9:.2f} GB, peak memory {peak / 1e9:.2f} GB")
    assert peak <= 2 * largest
    shutil.rmtree(tmp_path / "scales")

    model = ImageBART.from_pretrained(tmp_path / "model", device="cpu")
    assert (model.T, model.K, model.image_size) == (5, 548, (256, 256))
    assert sum(p.numel() for p in model.denoisers[2].parameters()) == 202_802_917
    x = torch.randint(548, (1, 256), generator=torch.Generator().manual_seed(0))
    assert all(model.denoisers[t](x, x).isfinite().all() for t in range(2, 6))
    shutil.rmtree(tmp_path / "model")
