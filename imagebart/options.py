"""What a caller may say: every option of sampling, editing and panoramas, in one place.

    Conditions         what an image shows
    ChainOptions       how its tokens are drawn
    SamplingOptions    both
    EditingOptions     … and how masked tokens are sampled; a process takes a part of these
    MaskOptions        … and how far around a mask; of an edit within the image
    InpaintOptions     … and which side of a mask is repainted
    ReimaginingOptions what a picture shows, what it is to show, and how far it may change
    PanoramaOptions    a wide picture: conditions from left to right, and how it is put together
    OutpaintOptions    one larger picture: an edit's, of one seed
    CandidateOptions   many samples of which the best are kept; and EditCandidateOptions, of edits
    OutputOptions      what becomes of a picture that is drawn
    RankingOptions     how many are drawn for one that is kept

An option is a row: name, type, default, meaning, bounds. A function that takes
`**options: Unpack[SamplingOptions]` and is decorated with `with_options` shows the rows in its
signature and its documentation, and refuses all other names. The command line, the app and the
evaluation make their arguments of the same rows (`as_dataclass`), so a new option is a row here and
the line that uses it.
"""

import difflib
import inspect
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, make_dataclass
from functools import reduce, wraps
from operator import or_
from types import GenericAlias, NoneType
from typing import Annotated, Any, Literal, NamedTuple, TypedDict, get_args, get_origin

import numpy as np
from PIL import Image
from typing_extensions import Doc

from imagebart.arguments import as_int, as_real
from imagebart.notation import Function

Classes = int | str | Sequence[int | str] | None
Texts = str | Sequence[str | None] | None
SemanticMaps = np.ndarray | Sequence[np.ndarray] | None
Marks = Image.Image | np.ndarray | list[Image.Image | np.ndarray]
"""A mask, or several, one over the other; see `masks.pixel_mask`."""

PER = {
    "seed": "or a list, one an image",
    "image": "one for all images, or one each",
    "scale": "one number, or one a scale from t = 2 to T",
    "place": "one, or several from left to right, evenly spread",
}
"""What a list of values stands for."""


@dataclass(frozen=True)
class Option:
    """A row of a table: the default, the meaning, what a list of values is `per`, and the bounds
    of a number: at `least` (more than it if `exclusive`) and at `most`."""

    default: Any
    meaning: str
    per: Literal["seed", "image", "scale", "place"] | None = None
    least: float = 0
    most: float | None = None
    exclusive: bool = False

    @property
    def about(self) -> str:
        """The meaning, and what a list means."""
        return f"{self.meaning}; {PER[self.per]}" if self.per else self.meaning


# ── the tables ────────────────────────────────────────────────────────────────────────────────


class Conditions(TypedDict, total=False):
    """What an image shows, for models that were trained on it.   [section 4.2]"""

    prompt: Annotated[Texts, Option(None, "what it shows, in words", per="image")]
    classes: Annotated[Classes, Option(None, "its class, an id or a name", per="image")]
    semantic_map: Annotated[
        SemanticMaps,
        Option(None, "what is where: kinds H×W, -1 where it is left open", per="image"),
    ]


class NoiseOptions(TypedDict, total=False):
    """Of how tokens are drawn, all that an edit of given tokens takes as well."""

    guidance: Annotated[
        float | Sequence[float] | None,
        Option(
            None,
            "1 is plain conditional sampling, more follows the condition harder; the model's own "
            "unless given",
            per="scale",
        ),
    ]
    seed: Annotated[int | Sequence[int], Option(0, "image i has seed + i", per="seed")]
    temperature: Annotated[
        float | Sequence[float],
        Option(1.0, "divides the prediction's logits; 0 takes the likeliest", per="scale"),
    ]
    method: Annotated[
        Literal["parallel", "sequential"] | Callable,
        Option("parallel", "how a scale is decoded: same tokens, another speed"),
    ]


class ChainOptions(NoiseOptions, total=False):
    """How tokens are drawn.   [section 3.3]"""

    negative_prompt: Annotated[
        Texts, Option(None, "text that guidance leads away from", per="image")
    ]
    top_k: Annotated[
        int | Sequence[int], Option(0, "only the k likeliest codes; 0 is off", per="scale")
    ]
    top_p: Annotated[
        float | Sequence[float],
        Option(
            1.0,
            "only the fewest codes that hold this much probability; 1 is off",
            per="scale",
            most=1,
            exclusive=True,
        ),
    ]
    min_p: Annotated[
        float | Sequence[float],
        Option(
            0.0,
            "only codes at least this times as likely as the likeliest; 0 is off",
            per="scale",
            most=1,
        ),
    ]


class SamplingOptions(Conditions, ChainOptions, total=False):
    """What a sample takes."""


class SingleOptions(SamplingOptions, total=False):
    """What `process.edit_steps` takes."""

    resampling_passes: Annotated[
        int | None,
        Option(
            None,
            "passes at t = T - 1, which sees all known tokens, in place of t = T and its "
            "particles; 0 is the paper's chain",
        ),
    ]
    particles: Annotated[
        int | None,
        Option(
            None,
            "fillings drawn at t = T, of which the known tokens after them choose one; unless "
            "given, 2 to 8 by the size of the mask, and 1 with a condition",
            least=1,
        ),
    ]


class RefinedOptions(SingleOptions, total=False):
    """What `process.refined_steps` takes."""

    passes: Annotated[
        int | None,
        Option(None, "of process refined: passes on the finest scale, at most; 8 unless given"),
    ]


class AnnealedOptions(SamplingOptions, total=False):
    """What `process.annealed_steps` takes."""

    chains: Annotated[
        int | Sequence[int] | None,
        Option(None, "of process annealed: passes; as released unless given", per="scale"),
    ]


class EditingOptions(RefinedOptions, AnnealedOptions, total=False):
    """What an edit takes."""

    process: Annotated[
        Literal["single", "refined", "annealed"],
        Option(
            "single",
            "how masked tokens are sampled; single: every scale once; refined: then more passes at "
            "t = 2; annealed: several passes at every scale, as released",
        ),
    ]
    feather: Annotated[
        int, Option(0, "pixels of the picture, inside the mask, over which its border is softened")
    ]


class MaskOptions(EditingOptions, total=False):
    """What an edit within the image takes."""

    context: Annotated[int, Option(0, "tokens by which the mask is dilated")]


class InpaintOptions(MaskOptions, total=False):
    """What an edit of a mask takes."""

    invert_mask: Annotated[bool, Option(False, "keep what the mask marks and repaint all else")]


class ReimaginingOptions(Conditions, NoiseOptions, total=False):
    """What a counterfactual edit takes."""

    source_prompt: Annotated[Texts, Option(None, "what the picture shows, in words", per="image")]
    source_classes: Annotated[
        Classes, Option(None, "the picture's class, an id or a name", per="image")
    ]
    source_semantic_map: Annotated[
        SemanticMaps, Option(None, "what is where in the picture", per="image")
    ]
    strength: Annotated[
        float,
        Option(
            1.0,
            "the part of the scales that run again, the finest first: 1 is all, 0 none",
            most=1,
        ),
    ]


OneSeed = Annotated[int, Option(0, "one number; another is another picture")]
CandidateSeed = Annotated[int, Option(0, "one number: candidate i has seed + i")]
"""Rows of tables where a list of seeds has no meaning."""


class OutpaintOptions(EditingOptions, total=False):
    """What `inpainting.outpaint_steps` takes."""

    seed: OneSeed  # type: ignore[misc]  # in place of the row above


class CandidateOptions(SamplingOptions, total=False):
    """What `ranking.best_of` takes."""

    seed: CandidateSeed  # type: ignore[misc]


class EditCandidateOptions(InpaintOptions, total=False):
    """What `ranking.best_edits` takes."""

    seed: CandidateSeed  # type: ignore[misc]


class PanoramaOptions(ChainOptions, total=False):
    """What a panorama takes."""

    seed: OneSeed  # type: ignore[misc]
    prompts: Annotated[Texts, Option(None, "what it shows, in words", per="place")]
    classes: Annotated[Classes, Option(None, "its class, an id or a name", per="place")]
    mode: Annotated[
        Literal["fast", "exact"],
        Option(
            "fast",
            "windows that overlap by half or more, or a window for every token (many times slower)",
        ),
    ]
    wrap: Annotated[bool, Option(False, "the right end continues at the left end")]


class OutputOptions(TypedDict, total=False):
    """What becomes of a picture that is drawn."""

    enlarge: Annotated[
        int,
        Option(1, "times larger, by a resampler (Lanczos), which adds no detail", least=1, most=4),
    ]


class RankingOptions(TypedDict, total=False):
    """How many are drawn for one that is kept.   [sections 4.1, 4.2]"""

    candidates: Annotated[
        int,
        Option(1, "drawn for each text, of which the most similar to it is kept", least=1),
    ]
    rejection_rate: Annotated[
        float,
        Option(
            1.0,
            "share of a class's samples that is kept: those a classifier is surest of",
            most=1,
            exclusive=True,
        ),
    ]


class Row(NamedTuple):
    type: Any
    option: Option

    @property
    def one(self) -> Any:
        """The type of one value, where the type allows for lists and for None."""
        if get_origin(self.type) is Literal or not get_args(self.type):
            return self.type
        parts = [part for part in get_args(self.type) if part not in (NoneType, Callable)]
        return reduce(or_, [part for part in parts if get_origin(part) is not Sequence])

    def check(self, value: Any, name: str) -> None:
        """ValueError unless one value is a number within the bounds."""
        if self.one is int:
            as_int(value, name, self.option.least, self.option.most)
        else:
            as_real(value, name, self.option.least, self.option.most, self.option.exclusive)


def rows(table: type) -> dict[str, Row]:
    """{name: (type, option)} of a table."""
    hints = table.__annotations__.items()
    return {name: Row(hint.__origin__, hint.__metadata__[0]) for name, hint in hints}


def with_defaults(table: type, given: Mapping[str, object]) -> dict[str, Any]:
    """The table's options: those given, and the defaults."""
    return {name: row.option.default for name, row in rows(table).items()} | {**given}


# ── public functions ──────────────────────────────────────────────────────────────────────────


def with_options(function: Function) -> Function:
    """A function of `**options: Unpack[Table]`, whose signature and documentation list the table.

    TypeError for any other name, with the nearest right one, before anything runs.
    """
    signature = inspect.signature(function)
    *written, options = signature.parameters.values()
    (table,) = get_args(options.annotation)
    shown = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=kind
        )
        for name, (kind, option) in rows(table).items()
    ]
    known = [one.name for one in (*written, *shown) if one.name != "self"]

    @wraps(function)
    def checked(*args, **given):
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f": did you mean {near[0]!r}?" if near else f", it takes {', '.join(known)}"
                raise TypeError(f"{function.__name__}() got {name!r}{hint}")
        return function(*args, **given)

    described: Any = checked
    described.__signature__ = signature.replace(parameters=[*written, *shown])
    described.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\n{documentation(table)}"
    return described


def documentation(table: type) -> str:
    """A paragraph for every option; of a function it says so, which a command line cannot take."""
    lines = ["Options:"]
    for name, (kind, option) in rows(table).items():
        text = f"{name} = {option.default!r}: {option.about}"
        text += "; or a function" if Callable in get_args(kind) else ""
        lines.append(textwrap.fill(text, 96, initial_indent=" " * 4, subsequent_indent=" " * 8))
    return "\n".join(lines)


# ── the command line ──────────────────────────────────────────────────────────────────────────


def as_dataclass(table: type, without: Collection[str] = ()) -> type:
    """The options as fields of a command line: one value where a function takes a list as well,
    but for places from left to right."""
    fields = []
    for name, row in rows(table).items():
        if name not in without:
            one, default = row.one, row.option.default
            if row.option.per == "place":
                one, default = GenericAlias(tuple, (one, ...)), ()
            elif default is None:
                one = one | None
            fields.append((name, Annotated[one, Doc(row.option.meaning)], default))
    return make_dataclass(table.__name__, fields, frozen=True, kw_only=True)


def options_given(config: Any, table: type) -> dict:
    """The options of a table that a command line was given: all that are not the defaults."""
    defaults = {name: field.default for name, field in config.__dataclass_fields__.items()}
    names = [name for name in rows(table) if name in defaults]
    return {
        name: getattr(config, name) for name in names if getattr(config, name) != defaults[name]
    }
