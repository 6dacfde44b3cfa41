"""Speaking frame by frame: audio is decoded while the single stream still speaks."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from xcodec_lm.codec.runtime.order import derive_seed
from xcodec_lm.codec.tokens import AudioTokenizer, TokenSpec
from xcodec_lm.lm.engine import Engine
from xcodec_lm.lm.layouts import Layout
from xcodec_lm.lm.llama import SpeechLlama
from xcodec_lm.tasks.tts.drafts import Task, find_loop, request_of, score
from xcodec_lm.tasks.tts.speech import Ending, Pace, Prompt, Sentence, Speaking, Spoken

CONTEXT_S = 1.0
"""End of the prompt that is decoded in front of the speech, so that the codec does not begin in silence."""
PIECE_S = 0.2
"""Codes are handed to the codec in pieces of about this length; every piece costs it a window."""
LOOK_S = 0.5
"""How often it is looked for loops."""


@torch.inference_mode()
def stream_frames(
    model: SpeechLlama, layout: Layout, pace: Pace, codec: AudioTokenizer, task: Task, speaking: Speaking
) -> Iterator[Spoken]:
    """Audio of a sentence as it becomes certain; the last piece has the sentence.

    Args:
        model: the single stream.
        layout: of its ids.
        pace: of its training data.
        codec: whose tokens they are.
        task: what to speak.
        speaking: how; its first draft is spoken, and cut where a loop is found.

    Raises:
        XcodecLMError: text and prompt do not fit the model.
    """
    spec, began = codec.spec, time.perf_counter()
    decoder, device = codec.stream_decoder(), getattr(codec, "device", "cpu")
    context = context_of(task.prompt, len(layout.books), spec)
    skip = round(context.shape[1] / spec.frame_rate * spec.output_sample_rate)  # samples of the prompt
    piece, look = (max(1, round(seconds * spec.frame_rate)) for seconds in (PIECE_S, LOOK_S))
    waiting, codes, looked = context, context[:, :0], 0
    ended: Ending = "limit"

    def heard(wav: Tensor) -> Tensor:
        """(1, N) of what the decoder gave, without the prompt."""
        nonlocal skip
        dropped = min(skip, wav.shape[-1])
        skip -= dropped
        return wav[0, :, dropped:].float().cpu()

    request = request_of(model, task, pace, speaking, derive_seed(task.seed, "draft", 0, 0))
    for event in Engine(model, layout).run([request]):
        if event.codes is not None:
            waiting, codes = (torch.cat([part, event.codes], dim=1) for part in (waiting, codes))
        if event.made is not None:
            if event.made.error is not None:
                raise event.made.error
            ended = "eos" if event.made.ended else "limit"
        if event.made is not None or codes.shape[1] >= looked + look:
            looked = codes.shape[1]
            if find_loop(codes[0].numpy(), float(spec.frame_rate)) is not None:
                ended = "loop"
                break
        if waiting.shape[1] >= piece and event.made is None:
            wav = heard(decoder.push(waiting[None].to(device)))
            waiting = waiting[:, :0]
            if wav.shape[1]:
                yield Spoken(wav, spec.output_sample_rate, [], time.perf_counter() - began)
                began = time.perf_counter()
    last = [decoder.push(waiting[None].to(device))] if waiting.shape[1] else []
    wav = torch.cat([heard(part) for part in (*last, decoder.flush())], dim=1)
    value = score(model, layout, task, codes, ended == "eos")
    sentence = Sentence(task.text, task.units, codes, ended, value, 1, task.unknown)
    yield Spoken(wav, spec.output_sample_rate, [sentence], time.perf_counter() - began)


def context_of(prompt: Prompt | None, n_q: int, spec: TokenSpec) -> Tensor:
    """(n_q, T) the end of a prompt that is decoded in front of the speech; empty without one."""
    codes = torch.zeros(n_q, 0, dtype=torch.int64) if prompt is None else prompt.codes[:n_q]
    return codes[:, -max(1, round(CONTEXT_S * spec.frame_rate)) :]
