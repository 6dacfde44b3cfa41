"""espeak-ng, a speech synthesizer by rules, in a process of its own.

The library (GPL-3, so only in the extra `[tts]`) is a C library with global state: this module is both ends of a pipe.
`Espeak` starts `python -m xcodec_lm.tasks.data.espeak` and asks it for speech; a crash of the library then is an error
message here, and phonemizer may have its own copy open.

Source: speak_lib.h of espeak-ng, https://github.com/espeak-ng/espeak-ng/blob/master/src/include/espeak-ng/speak_lib.h
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from xcodec_lm.configs.errors import XcodecLMError

INSTALL = "pip install 'xcodec-lm[tts]', or install espeak-ng with the system's package manager"
SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: espeak_Synth returns when the last sample has been handed over
NEVER_EXIT = 0x8000  # espeakINITIALIZE_DONT_EXIT: errors come back as -1
UTF8 = 1  # espeakCHARS_UTF8
RATE, VOLUME, PITCH, RANGE = 1, 2, 3, 4  # espeak_PARAMETER
HEADROOM = 40
"""VOLUME of everything, where 100 is usual: at 100 a fifth of the variants clip."""


@dataclass(frozen=True)
class Utterance:
    """What is said, and how.

    Attributes:
        text: in the spelling of `language`.
        language: espeak-ng's name of it, such as `en-us`.
        variant: espeak-ng's name of a timbre, such as `f3`.
        pitch: 0..99, 50 is the variant's own.
        pitch_range: 0..99, 0 is monotone and 50 the variant's own.
        words_per_minute: 80..450.
    """

    text: str
    language: str = "en-us"
    variant: str = "m1"
    pitch: int = 50
    pitch_range: int = 50
    words_per_minute: int = 170


def find_espeak() -> tuple[str, str]:
    """Paths of the library and of its data; for a system's library the second is "", it looks for them by itself.

    Raises:
        XcodecLMError: there is none.
    """
    if importlib.util.find_spec("espeakng_loader") is not None:
        loader = importlib.import_module("espeakng_loader")
        return loader.get_library_path(), loader.get_data_path()
    found = ctypes.util.find_library("espeak-ng")
    if found is None:
        raise XcodecLMError("synthetic speech needs espeak-ng, which is not installed", INSTALL)
    return found, ""


class Espeak:
    """A running espeak-ng; use it in a `with` statement.

    Attributes:
        sample_rate: of what it says, in Hz.
        variants: the timbres that its data folder has.

    Raises:
        XcodecLMError: there is no espeak-ng, or it does not start.
    """

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *find_espeak()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        hello = self._reply("its start")
        self.sample_rate: int = hello["sample_rate"]
        self.variants: tuple[str, ...] = tuple(hello["variants"])

    def __enter__(self) -> Espeak:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process."""
        if self._process.stdin and not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()

    def speak(self, utterance: Utterance) -> bytes:
        """The utterance as 16-bit samples, native byte order, at `sample_rate`; the same bytes every time.

        Raises:
            XcodecLMError: a language or variant that the data folder does not have, or a library that died.
        """
        if utterance.variant not in self.variants:
            raise XcodecLMError(
                f"this espeak-ng has no voice variant {utterance.variant!r}; it has {', '.join(self.variants)}", INSTALL
            )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `_reply` says what is wrong
            self._process.stdin.write(json.dumps(asdict(utterance)).encode() + b"\n")
            self._process.stdin.flush()
        size = self._reply(repr(utterance.text))["bytes"]
        return self._read(size, repr(utterance.text))

    def _reply(self, what: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            self._died(what)
        reply = json.loads(line)
        if "error" in reply:
            self.close()
            raise XcodecLMError(f"espeak-ng failed at {what}: {reply['error']}", INSTALL)
        return reply

    def _read(self, size: int, what: str) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(size)
        if len(data) < size:
            self._died(what)
        return data

    def _died(self, what: str) -> None:
        self.close()
        raise XcodecLMError(f"espeak-ng stopped at {what} (exit status {self._process.returncode})", INSTALL)


class _Voice(ctypes.Structure):
    """espeak_VOICE; also a query for voices."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_char_p),
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("xx1", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    )


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class _Library:
    """The C library, opened in this process."""

    def __init__(self, path: str, data: str):
        self.library = ctypes.CDLL(path)
        self.library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_Voice))
        self.samples = bytearray()
        self.receive = _CALLBACK(self._receive)  # kept: the library holds no reference
        # the library wants the folder that the folder espeak-ng-data lies in
        folder = os.fsencode(Path(data).parent) if data else None
        self.sample_rate: int = self.library.espeak_Initialize(SYNCHRONOUS, 0, folder, NEVER_EXIT)
        if self.sample_rate <= 0:
            raise RuntimeError(f"no voice data in {data or 'the place where the library looks'}")
        self.library.espeak_SetSynthCallback(self.receive)
        # breath noise is seeded by the clock at the start; before 1.52 there is no way to seed it
        if hasattr(self.library, "espeak_ng_SetRandSeed"):
            self.library.espeak_ng_SetRandSeed(ctypes.c_long(1))

    def _receive(self, samples: Any, count: int, _: Any) -> int:
        if samples and count > 0:
            self.samples += ctypes.string_at(samples, 2 * count)
        return 0  # go on

    def variants(self) -> list[str]:
        found = self.library.espeak_ListVoices(ctypes.byref(_Voice(languages=b"variant")))
        names = []
        for voice in found:
            if not voice:
                break
            names.append(os.path.basename(voice.contents.identifier.decode().replace("\\", "/")))
        return sorted(names)

    def speak(self, utterance: Utterance) -> bytes:
        name = f"{utterance.language}+{utterance.variant}".encode()
        if self.library.espeak_SetVoiceByName(name) != 0:
            raise RuntimeError(f"no voice {name.decode()}")
        for parameter, value in (
            (RATE, utterance.words_per_minute),
            (VOLUME, HEADROOM),
            (PITCH, utterance.pitch),
            (RANGE, utterance.pitch_range),
        ):
            self.library.espeak_SetParameter(parameter, value, 0)
        self.samples.clear()
        text = utterance.text.encode() + b"\0"
        status = self.library.espeak_Synth(text, len(text), 0, 1, 0, UTF8, None, None)
        if status != 0:
            raise RuntimeError(f"espeak_Synth returned {status}")
        return bytes(self.samples)


def _serve(library: str, data: str, requests: BinaryIO, replies: BinaryIO) -> None:
    """Answers requests, one JSON object a line, by one JSON line and then the samples.

    The library goes on from where the last utterance left its oscillators and noise. So each utterance is said by a
    fork, which begins as the library stands after its start: the same bytes, whatever was said before. Where there is
    no fork (Windows), the bytes depend on the order.
    """

    def answer(reply: dict[str, Any], samples: bytes = b"") -> None:
        replies.write(json.dumps(reply).encode() + b"\n" + samples)
        replies.flush()

    try:
        engine = _Library(library, data)
        answer({"sample_rate": engine.sample_rate, "variants": engine.variants()})
    except (OSError, RuntimeError, AttributeError) as error:
        answer({"error": str(error)})
        return
    forks = hasattr(os, "fork")
    for line in requests:
        child = os.fork() if forks else 0
        if child:
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if status:
                answer({"error": f"the library ended with status {status}"})
            continue
        try:
            samples = engine.speak(Utterance(**json.loads(line)))
            answer({"bytes": len(samples)}, samples)
        except RuntimeError as error:
            answer({"error": str(error)})
        if forks:
            os._exit(0)


if __name__ == "__main__":
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the library prints must not get into the pipe
    _serve(sys.argv[1], sys.argv[2], sys.stdin.buffer, pipe)
