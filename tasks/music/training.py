"""Training a music model with samples to listen to: the trainer of `lm`, which knows tokens, beside their codec."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from xcodec_lm.codec.audio import save_audio
from xcodec_lm.codec.runtime.progress import say
from xcodec_lm.codec.runtime.run import RunOptions
from xcodec_lm.codec.tokens import AudioTokenizer, stack_codes
from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.configs.lm import LMTrainConfig
from xcodec_lm.lm import train as trainer
from xcodec_lm.lm.engine import continue_codes
from xcodec_lm.lm.gpt import GPT
from xcodec_lm.lm.layouts import layout_from
from xcodec_lm.lm.shards import open_stores

dry_run = trainer.dry_run


def train(config: LMTrainConfig, options: RunOptions) -> Path:
    """Trains a music model, see `lm.train.train`; every validation writes continuations of dev recordings as audio."""
    return trainer.train(config, options, "music", Listener(config))


class Listener:
    """Writes continuations as audio. Without a codec that can be loaded it says so once and writes none.

    Args:
        config: of the run.
    """

    def __init__(self, config: LMTrainConfig):
        self.config = config
        self._codec: AudioTokenizer | None = None
        self._gave_up = False

    def __call__(self, model: GPT, recordings: list[int], folder: Path, steps: int) -> None:
        """Writes `folder/sample-I.flac`, what really follows, once, and `sample-I-step-N.flac`.

        Args:
            model: in eval mode.
            recordings: of the store, of split dev.
            folder: the run's `samples/`.
            steps: done so far.
        """
        codec = self._load()
        if codec is None:
            return
        settings, spec = self.config.run, codec.spec
        layout, store = layout_from(self.config.model.layout, spec), open_stores(self.config.data.tokens)
        frames = max(2, round(settings.sample_s * spec.frame_rate))
        for index, recording in enumerate(recordings):
            known = torch.from_numpy(store.codes(recording).T.astype(np.int64))  # (MQ, T)
            given = max(1, min(frames // 2, known.shape[1] // 2))
            new = continue_codes(model, layout, known[None, :, :given], frames, seed=settings.seed + index)[0].cpu()
            prompt = known[list(layout.books), :given]
            rows = {
                f"sample-{index}.flac": known[list(layout.books), : given + frames],
                f"sample-{index}-step-{steps}.flac": torch.cat([prompt, new], dim=1),
            }
            for name, wanted in rows.items():
                if not (folder / name).exists():
                    with torch.inference_mode():
                        wav, lengths = codec.decode(stack_codes([wanted], spec.take(len(layout.books))))
                    save_audio(folder / name, wav[0, :, : int(lengths[0])].cpu(), spec.output_sample_rate)

    def _load(self) -> AudioTokenizer | None:
        if self._codec is None and not self._gave_up:
            from xcodec_lm.codec import load_codec

            store = open_stores(self.config.data.tokens)
            try:
                if store.codec is None:
                    raise XcodecLMError("the token store does not say where its codec is")
                codec = load_codec(store.codec, decode_only=True)
                codec.spec.check_same_codec(store.spec, str(store.folder))
                if len(codec.spec.tracks) > 1:
                    raise XcodecLMError("tokens of several tracks have no common sound")
                self._codec = codec
            except XcodecLMError as error:
                say(f"no samples are written: {error}")
                self._gave_up = True
        return self._codec
