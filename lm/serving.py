"""Serving a language model over codec tokens with engines that draw by themselves: transformers, vLLM, SGLang.

Such an engine knows neither that position p of a sequence holds codebook p mod n_q, nor where a sequence may end. A
logits processor tells it: `constrain` leaves only the ids that may come next. It works for layouts with one id a step.

Repetition-aware sampling (VALL-E 2) looks at the id that was drawn, which a logits processor never sees. Two ways:
- `ras_mask` keeps the engine's own filters and gives -inf to every id whose share of the window exceeds the threshold,
  before the draw. CosyVoice also bans the repeated id, but only after it was drawn. This differs from the rule in three
  points: a banned id cannot come back, though the redraw would allow it with its full probability; an id is banned even
  where the filters would have removed it; and what replaces it comes from the filtered distribution, not the full one.
- `mix` is exact: it applies temperature, filters and redraw here, and hands over the logarithm of the probabilities
  with which our own engine draws. The engine must then draw at temperature 1 without filters of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from xcodec_lm.configs.errors import TokenError, UsageError
from xcodec_lm.lm.layouts import Layout
from xcodec_lm.lm.sampling import NO_ID, Sampling, is_repeated, mixture

FLAT_LAYOUTS = ("first", "flatten", "single", "dual_track")
"""Layouts with one id a step, whose ranges repeat with every frame."""
SECTION = "xcodec_lm"
"""Key of config.json under which an exported folder says what its ids mean."""
REQUEST_KEYS = ("min_frames", "ras_window", "ras_threshold")
"""What a request to vLLM may set in `extra_args` (over HTTP: `vllm_xargs`)."""


@dataclass(frozen=True)
class IdRules:
    """Which ids may stand where.

    Attributes:
        ranges: ids (low, high), high exclusive, of each position of a frame.
        bos: id in front of the codes, or None.
        eos: id that ends a sequence, or None.
        pad: id that fills rows, or None.
    """

    ranges: tuple[tuple[int, int], ...]
    bos: int | None = None
    eos: int | None = None
    pad: int | None = None

    @staticmethod
    def of(layout: Layout) -> IdRules:
        """The rules of a layout.

        Raises:
            TokenError: the layout has several ids a step, or another kind of model.
        """
        if layout.name not in FLAT_LAYOUTS:
            raise TokenError(
                f"layout {layout.name} is not one sequence with one id a step, which is all that other engines serve",
                f"train one of these layouts ({', '.join(FLAT_LAYOUTS)}), or generate with xcodec-lm itself",
            )
        ids, ranges = layout.vocabulary, [layout.logit_range(step) for step in range(layout.period)]
        return IdRules(tuple(ranges), ids.bos, ids.eos, ids.pad)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        ranges = [list(pair) for pair in self.ranges]
        return {"id_ranges": ranges, "ids_per_frame": len(ranges), "bos": self.bos, "eos": self.eos, "pad": self.pad}

    @staticmethod
    def from_dict(section: Mapping[str, Any] | None) -> IdRules:
        """The rules that `to_dict` wrote.

        Raises:
            TokenError: it is not such a section.
        """
        try:
            section = dict(section or {})
            ranges = tuple((int(low), int(high)) for low, high in section["id_ranges"])
            specials = {name: section.get(name) for name in ("bos", "eos", "pad")}
        except (KeyError, TypeError, ValueError):
            raise TokenError(
                f"this model's config.json has no section {SECTION!r} with id ranges",
                "give a folder that `xcodec-lm export --to transformers` wrote",
            ) from None
        return IdRules(ranges, **specials)


def constrain(logits: Tensor, generated: Sequence[Sequence[int]], rules: IdRules, min_frames: int = 0) -> Tensor:
    """Logits in which only the ids that may come next are finite.

    Args:
        logits: (B, V).
        generated: the ids of each row since its prompt, which ends with a whole frame.
        rules: of the layout.
        min_frames: eos is not allowed before so many frames were generated, nor ever within a frame.

    Returns:
        (B, V), a new tensor. A row that has ended already is treated as if it went on; engines ignore it.
    """
    allowed = torch.zeros(logits.shape, dtype=torch.bool)
    frame = len(rules.ranges)
    for row, ids in enumerate(generated):
        frames, position = divmod(len(ids), frame)
        low, high = rules.ranges[position]
        allowed[row, low:high] = True
        if rules.eos is not None and position == 0 and frames >= min_frames:
            allowed[row, rules.eos] = True
    return logits.masked_fill(~allowed.to(logits.device), -torch.inf)


def recent_ids(generated: Sequence[Sequence[int]], ids_per_frame: int, window: int) -> Tensor:
    """The last ids of the stream that each row continues: those at the same place of the frames before.

    Returns:
        (B, window) int64, the newest last; `NO_ID` in front where there are fewer.
    """
    recent = torch.full((len(generated), window), NO_ID)
    for row, ids in enumerate(generated):
        stream = list(ids[len(ids) % ids_per_frame :: ids_per_frame])[-window:] if window else []
        if stream:
            recent[row, -len(stream) :] = torch.tensor(stream)
    return recent


def ras_mask(
    logits: Tensor, generated: Sequence[Sequence[int]], rules: IdRules, window: int, threshold: float
) -> Tensor:
    """Constrained logits without the ids that repeat too often; the module says how this differs from the real rule.

    Eos is never banned, and a row that would have nothing left stays as it is.

    Args:
        logits: (B, V) from `constrain`.
        generated: the ids of each row since its prompt.
        rules: of the layout.
        window: how many ids of the same codebook are looked at; 0 changes nothing.
        threshold: the share of them above which an id is banned.
    """
    if not window:
        return logits
    sampling = Sampling(ras_window=window, ras_threshold=threshold)
    recent = recent_ids(generated, len(rules.ranges), window).to(logits.device)  # (B, W)
    banned = torch.zeros(len(logits), logits.shape[1] + 1, dtype=torch.bool, device=logits.device)
    # A column more for those that are not banned.
    banned.scatter_(
        1, torch.where((recent != NO_ID) & is_repeated(recent, recent, sampling), recent, logits.shape[1]), True
    )
    masked = logits.masked_fill(banned[:, :-1], -torch.inf)
    if rules.eos is not None:
        masked[:, rules.eos] = logits[:, rules.eos]
    codes = [slice(*rules.ranges[len(ids) % len(rules.ranges)]) for ids in generated]
    empty = torch.tensor([not bool(masked[row, place].isfinite().any()) for row, place in enumerate(codes)])
    return torch.where(empty.to(logits.device)[:, None], logits, masked)


def mix(
    logits: Tensor, generated: Sequence[Sequence[int]], rules: IdRules, sampling: Sampling, min_frames: int = 0
) -> Tensor:
    """Logarithms of the probabilities with which our engine would draw; exact repetition-aware sampling included.

    Args:
        logits: (B, V) of the model.
        generated: the ids of each row since its prompt.
        rules: of the layout.
        sampling: with a temperature above 0; its `books` count positions of a frame.
        min_frames: see `constrain`.

    Returns:
        (B, V) float32; -inf for ids that cannot be drawn.

    Raises:
        UsageError: the temperature is 0.
    """
    if sampling.temperature == 0:
        raise UsageError("a mixture needs a temperature above 0", "let the engine decode greedily with `constrain`")
    result = torch.full(logits.shape, -torch.inf, device=logits.device)
    frame = len(rules.ranges)
    history = recent_ids(generated, frame, sampling.history).to(logits.device)  # (B, W)
    groups: dict[tuple[int, bool], list[int]] = {}  # rows that may take the same ids are one call
    for row, ids in enumerate(generated):
        frames, position = divmod(len(ids), frame)
        groups.setdefault((position, position == 0 and frames >= min_frames), []).append(row)
    for (position, may_end), members in groups.items():
        rows = torch.tensor(members, device=logits.device)
        columns = torch.arange(*rules.ranges[position], device=logits.device)  # (K,)
        if rules.eos is not None and may_end:
            columns = torch.cat([columns, columns.new_tensor([rules.eos])])
        recent = torch.where(history[rows] == NO_ID, NO_ID, history[rows] - columns[0])
        probs = mixture(logits[rows[:, None], columns], sampling.for_book(position), recent)  # (rows, K)
        result[rows[:, None], columns] = probs.log()
    return result


class CodeLogitsProcessor(LogitsProcessor):
    """A logits processor for `transformers`' generate: only legal ids, eos only where a frame has ended.

        model.generate(prompt, logits_processor=[CodeLogitsProcessor(rules, prompt.shape[1])], ...)

    Args:
        rules: of the layout; `IdRules.from_dict(model.config.xcodec_lm)`.
        prompt_length: ids of the prompt, bos and what stands before it included; it ends with a whole frame.
        min_frames: frames to generate before eos is allowed.
        sampling: draw exactly so (`mix`); then give generate `do_sample=True, temperature=1.0, top_k=0, top_p=1.0`.
            None leaves filters to generate.
    """

    def __init__(self, rules: IdRules, prompt_length: int, min_frames: int = 0, sampling: Sampling | None = None):
        self.rules, self.prompt_length, self.min_frames, self.sampling = rules, prompt_length, min_frames, sampling

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, V) of the ids after input_ids (B, L), with those of ids that may not come next at -inf."""
        generated = input_ids[:, self.prompt_length :].tolist()
        if self.sampling is None:
            return constrain(scores, generated, self.rules, self.min_frames)
        return mix(scores, generated, self.rules, self.sampling, self.min_frames)


def request_settings(given: Mapping[str, Any] | None) -> tuple[int, int, float]:
    """`min_frames`, `ras_window` and `ras_threshold` of a request to an engine.

    Raises:
        UsageError: a value that does not fit.
    """
    values = {"min_frames": 0, "ras_window": 0, "ras_threshold": 0.1} | {
        key: value for key, value in (given or {}).items() if key in REQUEST_KEYS
    }
    try:
        frames, window, threshold = int(values["min_frames"]), int(values["ras_window"]), float(values["ras_threshold"])
    except (TypeError, ValueError):
        raise UsageError(f"{', '.join(REQUEST_KEYS)} must be numbers, got {values}") from None
    if frames < 0:
        raise UsageError(f"min_frames must be a whole number from 0, got {frames}")
    Sampling(ras_window=window, ras_threshold=threshold)  # raises where they do not fit
    return frames, window, threshold


def __getattr__(name: str) -> Any:
    if name == "VLLMCodeLogitsProcessor":  # its base class is vLLM's, which few have installed
        globals()[name] = _vllm_class()
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _vllm_class() -> type:
    """`VLLMCodeLogitsProcessor`, for `--logits-processors xcodec_lm.lm.serving:VLLMCodeLogitsProcessor`.

    Source: vLLM's interface of custom logits processors, https://docs.vllm.ai/en/stable/features/custom_logitsprocs/;
    its adapter follows requests through the batch and calls a function of (ids generated, logits (V,)) for each.
    """
    # By name, since vLLM is no dependency of ours, not even an optional one: it is the host of this class.
    adapter = import_module("vllm.v1.sample.logits_processor").AdapterLogitsProcessor

    class VLLMCodeLogitsProcessor(adapter):
        """Only legal ids for every request; `extra_args` may hold `min_frames`, `ras_window`, `ras_threshold`."""

        def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool):
            super().__init__(vllm_config, device, is_pin_memory)
            self.rules = IdRules.from_dict(getattr(vllm_config.model_config.hf_config, SECTION, None))

        @classmethod
        def validate_params(cls, sampling_params: Any) -> None:
            try:
                request_settings(sampling_params.extra_args)
            except UsageError as error:
                raise ValueError(str(error)) from None

        def is_argmax_invariant(self) -> bool:
            return False

        def new_req_logits_processor(self, params: Any) -> Any:
            frames, window, threshold = request_settings(params.extra_args)

            def process(output_ids: list[int], logits: Tensor) -> Tensor:
                row = constrain(logits[None], [output_ids], self.rules, frames)
                return ras_mask(row, [output_ids], self.rules, window, threshold)[0]

            return process

    return VLLMCodeLogitsProcessor
