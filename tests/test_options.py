"""One table of options, and every interface shows it: signatures, command line, app, evaluation."""

import ast
import dataclasses
import inspect
import re
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import completion
import edits
import generation
import inputs
import numpy as np
import obedience
import pytest
import seams
import selection
import torch
from PIL import Image
from rows import ImageRows

import imagebart.__main__
from imagebart import ImageBART, ranking, sampling, streaming
from imagebart.__main__ import Edit, Panorama, Reimagine, Sample
from imagebart.editing import inpainting, panorama, process, reimagining
from imagebart.options import (
    AnnealedOptions,
    CandidateOptions,
    Conditions,
    EditCandidateOptions,
    EditingOptions,
    InpaintOptions,
    MaskOptions,
    OutpaintOptions,
    PanoramaOptions,
    RankingOptions,
    RefinedOptions,
    ReimaginingOptions,
    SamplingOptions,
    SingleOptions,
    rows,
    with_defaults,
)

ROOT = Path(__file__).parents[1]
TAKES = {
    ImageBART.sample: SamplingOptions,
    ImageBART.sample_stream: SamplingOptions,
    ImageBART.sample_steps: SamplingOptions,
    ImageBART.inpaint: InpaintOptions,
    ImageBART.complete: MaskOptions,
    ImageBART.outpaint: EditingOptions,
    ImageBART.reimagine: ReimaginingOptions,
    ImageBART.panorama: PanoramaOptions,
    ImageBART.bits_per_token: Conditions,
    ImageBART.bits_per_token_of: Conditions,
    sampling.sample_steps: SamplingOptions,
    streaming.sample_stream: SamplingOptions,
    process.edit_steps: SingleOptions,
    process.refined_steps: RefinedOptions,
    process.annealed_steps: AnnealedOptions,
    inpainting.inpaint: InpaintOptions,
    inpainting.outpaint: EditingOptions,
    inpainting.outpaint_steps: OutpaintOptions,
    reimagining.reimagine: ReimaginingOptions,
    reimagining.reimagine_steps: ReimaginingOptions,
    panorama.panorama: PanoramaOptions,
    panorama.panorama_steps: PanoramaOptions,
    ranking.best_of: CandidateOptions,
    ranking.best_edits: EditCandidateOptions,
    ranking.reject: CandidateOptions,
}
IMAGE, MASK = Image.new("RGB", (32, 32)), np.eye(32, dtype=bool)
X_1 = torch.zeros(1, 4, 4, dtype=torch.int64)


# ── signatures ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("function", TAKES, ids=lambda function: function.__qualname__)
def test_a_signature_lists_the_options_that_a_function_takes(function):
    shown = inspect.signature(function).parameters
    for name, (hint, option) in rows(TAKES[function]).items():
        assert shown[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert (shown[name].default, shown[name].annotation) == (option.default, hint)
        assert f"\n    {name} = {option.default!r}: {option.meaning[:20]}" in function.__doc__
    assert not [p for p in shown.values() if p.kind is inspect.Parameter.VAR_KEYWORD]
    assert not [p for p in shown.values() if p.annotation is p.empty and p.name != "self"]


@pytest.mark.parametrize("function", TAKES, ids=lambda function: function.__qualname__)
def test_a_list_of_seeds_is_offered_where_it_is_taken(function):
    one = {OutpaintOptions, CandidateOptions, EditCandidateOptions, PanoramaOptions}
    about = re.sub(r"\s+", " ", function.__doc__)
    several = "seed" in rows(TAKES[function]) and TAKES[function] not in one
    assert ("seed = 0: image i has seed + i; or a list, one an image" in about) == several
    assert ("seed = 0: one number" in about) == (TAKES[function] in one)


def test_only_python_is_offered_a_function():
    assert "another speed; or a function" in re.sub(r"\s+", " ", ImageBART.sample.__doc__)
    assert not any("function" in row.option.meaning for row in rows(SamplingOptions).values())


LAZY = {
    "ImageBART.sample_steps": lambda m: m.sample_steps(0),
    "ImageBART.sample_stream": lambda m: m.sample_stream(0),
    "sampling.sample_steps": lambda m: sampling.sample_steps(m, 0),
    "streaming.sample_stream": lambda m: streaming.sample_stream(m, 0),
    "process.edit_steps": lambda m: process.edit_steps(m, X_1, X_1 > 0, 0),
    "process.refined_steps": lambda m: process.refined_steps(m, X_1, X_1 > 0, 0),
    "process.annealed_steps": lambda m: process.annealed_steps(m, X_1, X_1 > 0, 0),
    "inpainting.outpaint_steps": lambda m: inpainting.outpaint_steps(m, IMAGE, seed=-1),
    "reimagining.reimagine_steps": lambda m: reimagining.reimagine_steps(m, X_1, 0),
    "panorama.panorama_steps": lambda m: panorama.panorama_steps(m, 64, seed=-1),
}
"""What gives an iterator, asked for what cannot be."""


@pytest.mark.parametrize("name", LAZY)
def test_an_iterator_checks_at_its_first_step_and_says_so(tiny, name):
    steps = LAZY[name](tiny)
    with pytest.raises(ValueError, match=r"(num_images|seed) must be a whole number"):
        next(steps)
    owner, function = name.split(".")
    about = re.sub(r"\s+", " ", getattr(globals()[owner], function).__doc__)
    assert re.search("[Ff]irst (step|batch)|errors as in `edit_steps`", about)


def test_every_iterator_is_tried():
    lazy = {f for f in TAKES if "Iterator" in str(inspect.signature(f).return_annotation)}
    assert lazy == {getattr(globals()[one], name) for one, name in (x.split(".") for x in LAZY)}


def functions_of_the_library() -> list[tuple[str, ast.FunctionDef]]:
    trees = {path: ast.parse(path.read_text("utf-8")) for path in ROOT.glob("imagebart/**/*.py")}
    return [
        (f"{path.relative_to(ROOT)}: {node.name}", node)
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    ]


def test_every_function_of_a_table_shows_it():
    for name, node in functions_of_the_library():
        kwarg = node.args.kwarg
        if kwarg and "Unpack" in ast.unparse(kwarg.annotation or ast.Constant("")):
            decorated = "with_options" in map(ast.unparse, node.decorator_list)
            assert decorated or node.name == "__init__", name
            assert decorated <= (node.name in {function.__name__ for function in TAKES}), name


def test_every_model_is_typed():
    for name, node in functions_of_the_library():
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        assert not [a for a in arguments if a.arg == "model" and a.annotation is None], name


WRONG = {
    "sample() got 'temprature': did you mean 'temperature'?": lambda m: m.sample(temprature=1),
    "sample() got 'output_typ': did you mean 'output_type'?": lambda m: m.sample(output_typ="pt"),
    "sample_steps() got 'promt': did you mean 'prompt'?": lambda m: m.sample_steps(promt="x"),
    "sample_stream() got 'promt': did you mean 'prompt'?": lambda m: m.sample_stream(promt="x"),
    "inpaint() got 'promt': did you mean 'prompt'?": lambda m: m.inpaint(IMAGE, MASK, promt="x"),
    "complete() got 'kep': did you mean 'keep'?": lambda m: m.complete(IMAGE, kep="left"),
    "outpaint() got 'lft': did you mean 'left'?": lambda m: m.outpaint(IMAGE, lft=8),
    "outpaint() got 'context', it takes image, num_images, ": (  # there it is `overlap`
        lambda m: m.outpaint(IMAGE, left=8, context=1)
    ),
    "reimagine() got 'top_k', it takes image, num_images, ": (
        lambda m: m.reimagine(IMAGE, top_k=8)
    ),
    "panorama() got 'prompt': did you mean 'prompts'?": lambda m: m.panorama(64, prompt="x"),
    "bits_per_token() got 'clases': did you mean 'classes'?": (
        lambda m: m.bits_per_token(IMAGE, clases=1)
    ),
    "edit_steps() got 'nonsense', it takes model, x_1, masked, ": (
        lambda m: process.edit_steps(m, None, None, nonsense=1)
    ),
    "best_of() got 'chunks': did you mean 'chunk'?": (
        lambda m: ranking.best_of(m, 1, 1, None, chunks=2)
    ),
}


@pytest.mark.parametrize("sentence", WRONG)
def test_a_wrong_name_is_refused_in_the_first_frame_of_ours(tiny, sentence):
    with pytest.raises(TypeError) as error:
        WRONG[sentence](tiny)
    assert str(error.value).startswith(sentence) and "\n" not in str(error.value)
    paths = [Path(entry.path) for entry in error.traceback]
    assert [path for path in paths if ROOT / "imagebart" in path.parents] == paths[-1:]


def test_an_option_of_another_process_is_refused(tiny):
    for wrong, sentence in (
        ({"passes": 3}, "passes needs process='refined', got 'single'"),
        ({"chains": 3, "process": "refined"}, "chains needs process='annealed', got 'refined'"),
        (
            {"resampling_passes": 0, "process": "annealed"},
            "needs process='single' or 'refined'",
        ),
        ({"process": "fast"}, "process must be one of"),
        ({"process": ["single"]}, "process must be one of"),
        ({"temperature": None}, "temperature must be a number, at least 0, got None"),
    ):
        with pytest.raises(ValueError, match=sentence):
            tiny.inpaint(IMAGE, MASK, **wrong)


# ── what the table says is true ───────────────────────────────────────────────────────────────


def test_what_is_not_said_is_the_default_of_the_table(tiny):
    how = {"output_type": "pt"}
    for function, arguments in (
        (tiny.sample, (2,)),
        (tiny.inpaint, (IMAGE, MASK)),
        (tiny.outpaint, (IMAGE,)),
        (tiny.reimagine, (IMAGE,)),
        (tiny.panorama, (48,)),
    ):
        said = with_defaults(TAKES[getattr(ImageBART, function.__name__)], {})
        assert torch.equal(function(*arguments, **how, **said), function(*arguments, **how))
    x_1 = tiny.encode(IMAGE)
    masked = torch.ones_like(x_1, dtype=torch.bool)
    for steps in process.PROCESSES.values():
        *_, said = steps(tiny, x_1, masked, **with_defaults(TAKES[steps], {}))
        *_, plain = steps(tiny, x_1, masked)
        assert torch.equal(said.tokens, plain.tokens)


def test_choices_of_the_tables_are_those_that_there_are():
    for table, name, choices in (
        (SamplingOptions, "method", sampling.METHODS),
        (EditingOptions, "process", process.PROCESSES),
        (PanoramaOptions, "mode", panorama.MODES),
    ):
        assert set(get_args(rows(table)[name].one)) == set(choices)
    for name, default in vars(sampling.Filter()).items():
        assert rows(SamplingOptions)[name].option.default == default


# ── command line, page, evaluation ────────────────────────────────────────────────────────────

ARRAY = "an array: the app paints one"
DRAWN = "what each scene or caption of the evaluation says"
SWEPT = "several in one run"
INTERFACES = {  # where options can be given, of which table, and which cannot: why
    "sample": (Sample, SamplingOptions, {"semantic_map": ARRAY}),
    "edit": (Edit, InpaintOptions, {"semantic_map": ARRAY}),
    "reimagine": (
        Reimagine,
        ReimaginingOptions,
        {"semantic_map": ARRAY, "source_semantic_map": ARRAY},
    ),
    "panorama": (Panorama, PanoramaOptions, {}),
    "eval/generation.py": (
        generation.Config,
        SamplingOptions,
        dict.fromkeys(["prompt", "classes", "semantic_map"], DRAWN),
    ),
    "eval/obedience.py": (
        obedience.Config,
        SamplingOptions,
        dict.fromkeys(["prompt", "classes", "semantic_map"], DRAWN) | {"guidance": SWEPT},
    ),
    "eval/edits.py": (
        edits.Config,
        MaskOptions,
        dict.fromkeys(["prompt", "classes", "semantic_map"], DRAWN),
    ),
    "eval/completion.py": (
        completion.Config,
        MaskOptions,
        dict.fromkeys(["prompt", "classes", "semantic_map"], DRAWN)
        | dict.fromkeys(completion.LISTED, SWEPT)
        | dict.fromkeys(completion.WIDTHS, "how it is pasted is not measured there"),
    ),
}


def test_selection_panoramas_and_ranking_are_set_by_the_tables():
    for config, table, missing in (
        (selection.Config, SamplingOptions, Conditions.__annotations__.keys()),
        (seams.Config, PanoramaOptions, {"prompts", "classes", "wrap", "mode"}),
        (generation.Config, RankingOptions, {}),
    ):
        assert rows(table).keys() - config.__dataclass_fields__.keys() == {*missing}


def options_of(interface: str) -> dict:
    """A value that is not the default for every option that can be said there."""
    _, table, missing = INTERFACES[interface]
    values = {float: 0.5, int: 3, str: "lake", int | str: "lake", bool: True}
    said = {}
    for name, row in rows(table).items():
        if name not in missing:
            value = values.get(row.one) or get_args(row.one)[-1]
            said[name] = (value,) if row.option.per == "place" else value
    return said


class Recorder:
    """A model that draws nothing and remembers the options it was given."""

    K, T, conditions, device = 12, 3, {}, torch.device("cpu")

    def sample(self, *_, output_type="pil", **options):
        self.options = options
        return [IMAGE] if output_type == "pil" else torch.zeros(1, 3, 32, 32)

    def sample_stream(self, *_, batch=None, part=None, **options):
        return iter([self.sample(**options)])

    def inpaint(self, *_, **options):
        self.options = options
        return [IMAGE]

    def repainted(self, image, mask, count, options):
        self.options = options
        yield SimpleNamespace(pictures=lambda _: [IMAGE]), None

    def reimagined(self, image, count, options):
        self.options = options
        yield torch.zeros(1, 3, 32, 32)

    def panorama_steps(self, width, height, **options):
        self.options = options
        yield SimpleNamespace(done=1, tokens=None)

    def wide_image(self, *_):
        return torch.zeros(1, 3, 32, 32)

    def predict(self, *_):
        """As a probe, it sees nothing."""


@pytest.mark.parametrize("interface", INTERFACES)
def test_every_option_reaches_the_command_line_and_the_evaluation(interface, monkeypatch, tmp_path):
    config, table, missing = INTERFACES[interface]
    several = {name for name, why in missing.items() if why == SWEPT}  # fields of another kind
    assert rows(table).keys() - config.__dataclass_fields__.keys() == missing.keys() - several
    said, model, more = options_of(interface), Recorder(), {"out": tmp_path / "out.png"}
    IMAGE.save(tmp_path / "image.png")
    monkeypatch.setattr(ImageBART, "from_pretrained", lambda *_, **__: model)
    for name in ("repainted", "reimagined", "panorama_steps", "wide_image"):
        monkeypatch.setattr(imagebart.__main__, name, getattr(Recorder, name))
    if interface == "edit":
        more |= {"image": tmp_path / "image.png", "mask": tmp_path / "image.png"}
    elif interface == "reimagine":
        more |= {"image": tmp_path / "image.png"}
    config = config(**said, **more)
    if interface == "eval/generation.py":
        inputs.samples(model, None, config, [], [0])
        said["seed"] = [said["seed"]]
    elif interface == "eval/obedience.py":
        monkeypatch.setattr(obedience.Targets, "__init__", lambda *_: None)
        monkeypatch.setattr(obedience.Targets, "options", lambda *_: {})
        monkeypatch.setattr(obedience, "as_columns", lambda _: {})
        config, kept = dataclasses.replace(config, n=1), ImageRows(None, 1, {"seconds": ("f4", 1)})
        obedience.draw_samples(model, model, obedience.Targets(), "text", 2.0, config, kept)
        said |= {"guidance": 2.0, "seed": [said["seed"]]}
    elif interface == "eval/edits.py":
        edits.edited(model, None, IMAGE, MASK, "a lake", [said["seed"]], config)
        said |= {"prompt": "a lake", "seed": [said["seed"]]}
    elif interface == "eval/completion.py":
        config = dataclasses.replace(config, process=("refined",), resampling_passes=(3,))
        (model.options,) = completion.inpaint_options(config)
        said |= {"process": "refined", "resampling_passes": 3}
        del said["seed"]  # of image 0
    else:
        config.run()
    if callable(model.options.get("method")):  # one that counts its passes
        names = {function: name for name, function in sampling.METHODS.items()}
        model.options["method"] = names[model.options["method"].func]
    assert model.options == said
