"""Classifier-free guidance: what a caller wants to see, and how strongly.

    f = f_negative + guidance · ( f_condition - f_negative )

f is the network's output at one scale, before `Denoiser.logits` makes logits of x_{t-1} of it: with
the output `posterior` a prediction of x_1, so that guidance leaves the noise alone which x_{t-1}
must carry. The negative condition is the unconditional one (every token absent), but for a negative
prompt; guidance 1 is plain conditional sampling.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from imagebart.arguments import each_of, is_several, quoted, to_builtin, warn_caller
from imagebart.choice import Filter
from imagebart.conditions import ABSENT, CONDITIONS, Condition, option_names, split_condition
from imagebart.decodable import Decodable
from imagebart.denoiser import Denoiser
from imagebart.model import ImageBART
from imagebart.notation import Bool, Float, Int, Tokens
from imagebart.options import ChainOptions, rows

PLAIN = Filter()
"""It leaves logits as they are."""


@dataclass(frozen=True)
class EncodedCondition:
    """The condition of a batch (b, m), the negative one, and the guidance at each t.

    Both are None for a model that takes no condition.
    """

    condition: Condition | None
    negative: Condition | None
    guidance: dict[int, float]

    def given(self, batch: int) -> list[bool]:
        """For each of the images, whether it has any condition."""
        if self.condition is None:
            return [False] * batch
        return (self.condition != ABSENT).any(1).tolist()

    def of(self, images: Int[Tensor, " r"]) -> "EncodedCondition":
        """Those of these images."""
        condition, negative = (
            None if one is None else one[images] for one in (self.condition, self.negative)
        )
        return EncodedCondition(condition, negative, self.guidance)

    def same_as(self, other: "EncodedCondition") -> bool:
        pairs = (self.condition, other.condition), (self.negative, other.negative)
        same = all((a is b) if a is None or b is None else torch.equal(a, b) for a, b in pairs)
        return same and self.guidance == other.guidance

    def steered(self, denoiser: Denoiser, choose: Filter = PLAIN) -> tuple[Decodable, Filter]:
        """(the denoiser, guided where the guidance is not 1 and filtered where it predicts x_1,
        what is left of the filter for its logits)."""
        scale = self.guidance[denoiser.t]
        of_predictions, of_logits = filters(denoiser, choose)
        steered: Decodable = denoiser
        if scale != 1 and self.negative is not None:
            steered = Guided(denoiser, of_predictions, self.negative, scale)
        elif of_predictions != PLAIN:
            steered = Filtered(denoiser, of_predictions)
        return steered, of_logits


def filters(denoiser: Denoiser, choose: Filter) -> tuple[Filter, Filter]:
    """A scale's filter as (that of its predictions, that of its logits): one of them is plain."""
    return (choose, PLAIN) if denoiser.adds_noise else (PLAIN, choose)


class Filtered(Decodable):
    """A denoiser whose predictions are filtered; decoded as any other."""

    def __init__(self, denoiser: Denoiser, choose: Filter):
        self.denoiser, self.choose = denoiser, choose
        self.n, self.K, self.t = denoiser.n, denoiser.K, denoiser.t

    def start(self, x_t: Tokens, condition: Condition | None = None) -> Any:
        """As `Decodable.start`."""
        return self.denoiser.start(x_t, condition)

    def step(self, x_prev: Tokens, at: Int[Tensor, "b s"], state: Any) -> Float[Tensor, "b s K"]:
        """As `Decodable.step`."""
        f = self.choose.applied(self.denoiser.predict(x_prev, at, state))
        return self.denoiser.logits(f, state.x_t.gather(1, at))

    def read(self, x_prev: Tokens, end: int, state: Any) -> None:
        """As `Decodable.read`."""
        self.denoiser.read(x_prev, end, state)

    def keep(self, rows: Bool[Tensor, " b"], state: Any) -> None:
        """As `Decodable.keep`."""
        self.denoiser.keep(rows, state)


class Guided(Filtered):
    """A denoiser with guided predictions. Both conditions go in one batch."""

    def __init__(self, denoiser: Denoiser, choose: Filter, negative: Condition, scale: float):
        super().__init__(denoiser, choose)
        self.negative, self.scale = negative, scale

    def start(self, x_t: Tokens, condition: Condition | None = None) -> Any:
        """As `Decodable.start`, for twice the rows: with the condition, then with the negative."""
        if condition is None:
            raise ValueError("guidance needs a condition, got None")
        return self.denoiser.start(twice(x_t), torch.cat([condition, self.negative]))

    def step(self, x_prev: Tokens, at: Int[Tensor, "b s"], state: Any) -> Float[Tensor, "b s K"]:
        """As `Decodable.step`."""
        f, f_negative = self.denoiser.predict(twice(x_prev), twice(at), state).chunk(2)
        f = (f - f_negative).mul_(self.scale).add_(f_negative)
        x_t = state.x_t[: len(at)].gather(1, at)
        return self.denoiser.logits(self.choose.applied(f), x_t)

    def read(self, x_prev: Tokens, end: int, state: Any) -> None:
        """As `Decodable.read`."""
        self.denoiser.read(twice(x_prev), end, state)

    def keep(self, rows: Bool[Tensor, " b"], state: Any) -> None:
        """As `Decodable.keep`."""
        self.denoiser.keep(twice(rows), state)


def twice(x: Tensor) -> Tensor:
    return torch.cat([x, x])


def encode_condition(
    model: ImageBART,
    batch: int,
    *,
    guidance: float | Sequence[float] | None = None,
    seeds: Sequence[int] | None = None,
    called: Mapping[str, str] | None = None,
    **given,
) -> EncodedCondition:
    """A caller's words as tokens: `given` by the options of the table of conditions (`classes`,
    `prompt`, `negative_prompt`, `semantic_map`), one for all or one for each of `batch` images.

    With `seeds`, one for each image, those of which nothing is said have a class by their seed if
    the model draws classes (`classes_of_seeds`).

    ValueError if they do not fit the model, TypeError for an option that is not in the table. An
    option that the caller has by another name, {option: name} in `called`, has it in messages.
    """
    if unknown := given.keys() - option_names():
        known = ", ".join(sorted(option_names()))
        raise TypeError(f"conditions must be given by {known}, got {', '.join(unknown)}")
    scales, called = guidance_of(model, guidance), called or {}
    tokens = tokens_given(model, batch, given, called)
    if not model.conditions:
        return EncodedCondition(None, None, scales)
    condition, unconditional = (torch.cat(parts, dim=1).to(model.device) for parts in tokens)
    if seeds is not None and model.draws_class:
        unsaid = (condition == ABSENT).all(1)
        condition = torch.where(unsaid[:, None], classes_of_seeds(model, seeds), condition)
    require_conditions(model, condition, called)
    if (unconditional != ABSENT).any() and all(scale == 1 for scale in scales.values()):
        warn_caller("negative_prompt: not read at guidance 1")
    if torch.equal(condition, unconditional):  # nothing to guide to
        scales = dict.fromkeys(scales, 1.0)
    return EncodedCondition(condition, unconditional, scales)


def tokens_given(
    model: ImageBART, batch: int, given: Mapping[str, Any], called: Mapping[str, str]
) -> tuple[list[Tensor], list[Tensor]]:
    """The tokens (b, _) of each of the model's conditions, and those of the negative ones;
    ValueError for a condition that it has not. `given` and `called` as in `encode_condition`."""
    positive: list[Tensor] = []
    negative: list[Tensor] = []
    for name, kind in CONDITIONS.items():
        for parts, option in ((positive, kind.option), (negative, kind.negative or "")):
            name_given = called.get(option, option)
            values = each_of(given.get(option), batch, kind.value, name_given)
            if kind.value is str:
                values = [one or None for one in values]  # an empty text is none
            if name in model.conditions:
                parts.append(kind.encode(model, values, name_given))
            elif any(one is not None for one in values):
                said = quoted(given[option])
                raise ValueError(f"this model takes no {name}, got {name_given} {said}")
    return positive, negative


def require_conditions(model: ImageBART, condition: Condition, called: Mapping[str, str]) -> None:
    """ValueError if an image has not all conditions (b, m) of a model that was trained without
    condition dropout; `called` as in `encode_condition`."""
    for name, tokens in split_condition(condition, model.conditions).items():
        if not model.condition_dropout and (tokens == ABSENT).all(1).any():
            option = CONDITIONS[name].option
            said = called.get(option, option)
            raise ValueError(f"this model was trained to be given {name} always, got no {said}")


def classes_of_seeds(model: ImageBART, seeds: Sequence[int]) -> Condition:
    """The condition of nothing but each seed's class.

    p(x) = Σ_c p(c) p(x | c),    p(c) = 1 / classes
    """
    shapes = model.conditions
    row = {name: torch.full((len(seeds), shape.length), ABSENT) for name, shape in shapes.items()}
    row["class"][:, 0] = torch.tensor([class_of_seed(model, seed) for seed in seeds])
    return torch.cat([row[name] for name in CONDITIONS if name in row], dim=1).to(model.device)


def class_of_seed(model: ImageBART, seed: int) -> int:
    """Seed modulo classes, so that seeds in turn show all."""
    return seed % model.conditions["class"].vocabulary


def guidance_of(model: ImageBART, guidance: float | Sequence[float] | None) -> dict[int, float]:
    """{t: guidance}, the model's own for None; ValueError where the model cannot be guided."""
    scales = guidance_by_scale(model, guidance)
    if not (model.conditions and model.condition_dropout):
        require_unguided([*scales.values()], model.guidance if guidance is None else guidance)
    return scales


def require_unguided(scales: Sequence[float], guidance: float | Sequence[float]) -> None:
    """ValueError, with the guidance as it was given, unless that of every scale is 1."""
    if any(scale != 1 for scale in scales):
        raise ValueError(
            "guidance must be 1 for a model that was trained without condition dropout, "
            f"got {guidance}"
        )


def guidance_by_scale(
    model: ImageBART, guidance: float | Sequence[float] | None
) -> dict[int, float]:
    """{t: guidance}, the model's own for None."""
    scales = checked_guidance(model.guidance if guidance is None else guidance, model.T)
    return dict(zip(range(2, model.T + 1), scales, strict=True))


def checked_guidance(guidance: float | Sequence[float], T: int) -> list[float]:
    """The guidance of t = 2 .. T; ValueError unless it is one number or so many, none of them
    negative."""
    scales = per_scale(guidance, T, "guidance")
    for scale in scales:
        rows(ChainOptions)["guidance"].check(scale, "guidance")
    return scales


def per_scale(value, T: int, name: str) -> list:
    """One value for every scale t = 2 .. T."""
    value = to_builtin(value, str)
    values = [to_builtin(v, str) for v in value] if is_several(value) else [value] * (T - 1)
    if len(values) != T - 1:
        raise ValueError(f"{name} must be one number, or {T - 1} for t = 2 to {T}, got {value}")
    return values
