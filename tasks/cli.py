"""The command line: `xcodec-lm NOUN VERB ...` finds a command, runs it and turns errors into exit codes.

Results go to stdout (`--json`: as one JSON object), everything else to stderr. Exit codes: 0 done, 1 the user can mend
it, 2 usage, 3 done in part, 4 our fault, 130 interrupted.
"""

from __future__ import annotations

import difflib
import io
import json
import os
import sys
import traceback
from dataclasses import dataclass
from typing import Any

import tyro

from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.tasks.commands import (
    arch,
    clap,
    codec,
    codec_card,
    codec_eval,
    codec_stream,
    common,
    compare,
    convert,
    data,
    evaluate,
    export,
    general,
    hubert,
    music,
    report,
    reproduce,
    sound,
    tts,
)


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    verbose, quiet, as_json = (
        _take_flag(argv, *names) for names in (("-v", "--verbose"), ("-q", "--quiet"), ("--json",))
    )
    asked = {"-v": verbose, "-q": quiet, "--json": as_json}
    common.command_words[:] = argv
    common.common_flags[:] = [flag for flag, given in asked.items() if given]
    try:
        return _run(argv, quiet, as_json)
    except XcodecLMError as error:
        _complain(error.message, error.hint, verbose)
        return error.exit_code
    except KeyboardInterrupt:
        _complain("interrupted", "", verbose)
        return 130
    except BrokenPipeError:  # the reader of our output went away
        sys.stdout = io.StringIO()
        return 0
    except Exception as error:
        _complain(
            f"internal error: {type(error).__name__}: {error}",
            "this is a defect; run the command again with -v and report what it prints",
            verbose,
        )
        return 4


def _run(argv: list[str], quiet: bool, as_json: bool) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if argv[0] == "--version":
        from importlib.metadata import version

        print(f"xcodec-lm {version('xcodec-lm')}")
        return 0
    name, rest = _find_command(argv)
    if name is None:
        return 0
    # Before torch is first imported, and for worker processes too. Its start-up notes are not for users; and threads
    # that wait by spinning slow a step down several times as soon as another process wants a core.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from xcodec_lm.codec.runtime import progress
    from xcodec_lm.codec.runtime.memory import keep_freed_memory

    progress.set_quiet(quiet)
    keep_freed_memory()
    command = COMMANDS[name]
    try:
        result = command.run(rest)
    except SystemExit as stop:  # from the argument parser
        return stop.code if isinstance(stop.code, int) else 2
    partial = None
    if isinstance(result, tuple):
        result, partial = result
    if isinstance(result, int):
        return result
    if not progress.is_main_process():
        pass  # one of several processes prints
    elif as_json:
        print(json.dumps(result.data, indent=1, default=str))
    elif result.text:
        print(result.text)
    if partial is not None:
        raise partial
    return 0


def _take_flag(argv: list[str], *names: str) -> bool:
    found = False
    for name in names:
        while name in argv:
            argv.remove(name)
            found = True
    return found


def _complain(message: str, hint: str, verbose: bool) -> None:
    if os.environ.get("RANK", "0") != "0":
        return
    if verbose:
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)


def _find_command(argv: list[str]) -> tuple[str | None, list[str]]:
    words = " ".join(argv[:2])
    if words in COMMANDS:
        return words, argv[2:]
    if argv[0] in COMMANDS:
        return argv[0], argv[1:]
    verbs = [name for name in COMMANDS if name.startswith(argv[0] + " ")]
    if verbs and (len(argv) == 1 or argv[1] in ("-h", "--help")):
        print(overview(argv[0]))
        return None, []
    close = difflib.get_close_matches(words, COMMANDS, n=1, cutoff=0.4) or difflib.get_close_matches(
        argv[0], COMMANDS, n=1
    )
    meant = f"; did you mean `xcodec-lm {close[0]}`?" if close else ""
    raise UsageError(f"no command is called {words!r}{meant}", "list them: xcodec-lm --help")


def overview(noun: str = "") -> str:
    """The list of commands, or of those of one noun."""
    rows = [(name, command.summary) for name, command in COMMANDS.items() if name.startswith(noun)]
    width = max(len(name) for name, _ in rows)
    lines = ["xcodec-lm: audio language models in which the codec is the variable", ""]
    lines += [f"  {name:<{width}}  {summary}" for name, summary in rows]
    lines += ["", "options of every command: --help  --json  -q (quiet)  -v (tracebacks)"]
    return "\n".join(lines)


@dataclass(frozen=True)
class Command:
    """A function behind a command; training commands parse their own arguments."""

    function: Any
    summary: str
    parses: bool = False

    def run(self, argv: list[str]) -> Any:
        """Parses the arguments and runs the function."""
        if self.parses:
            return self.function(argv)
        name = next(key for key, value in COMMANDS.items() if value is self)
        return tyro.cli(self.function, args=argv, prog=f"xcodec-lm {name}")


COMMANDS: dict[str, Command] = {
    "demo": Command(general.demo, "the whole path in one command, with a report to listen to"),
    "reproduce": Command(reproduce.reproduce, "table1 to table7 or all: the paper's tables, on its data or in small"),
    "report": Command(report.report, "run folders and results of evaluations as one page"),
    "presets": Command(general.presets, "ls, show NAME or cp NAME: configurations to start from"),
    "data scan": Command(data.data_scan, "list the recordings of a folder or a corpus in a manifest"),
    "data check": Command(data.data_check, "find everything that is wrong with a manifest"),
    "data synth": Command(data.data_synth, "make a small corpus of music, sounds and speech"),
    "data join": Command(data.data_join, "join short recordings of one speaker to longer utterances"),
    "data continual": Command(data.data_continual, "list the utterances on which zero-shot speech is tested"),
    "data tokenize": Command(data.data_tokenize, "encode a manifest into a token store"),
    "data spm": Command(data.data_spm, "train sentencepiece on the texts of a manifest"),
    "data stats": Command(data.data_stats, "hours, tokens and code entropy of a token store"),
    "codec train": Command(codec.codec_train, "train X-Codec or its twin", parses=True),
    "codec eval": Command(codec_eval.codec_eval, "quality of reconstructions; --against: beside the twin's"),
    "codec encode": Command(codec.codec_encode, "audio file to .tokens"),
    "codec decode": Command(codec.codec_decode, ".tokens to audio file"),
    "codec info": Command(codec.codec_info, "what a codec is; --list those that are known; --verify a fingerprint"),
    "codec stream": Command(codec_stream.codec_stream, "a recording piece by piece, and how far that is from at once"),
    "codec convert": Command(convert.codec_convert, "a checkpoint in the original code's, transformers' or our layout"),
    "codec card": Command(codec_card.codec_card, "what a codec is as a language model's tokenizer, on one page"),
    "codec ship": Command(codec.codec_ship, "a run as a model folder for others: half precision, card, provenance"),
    "hubert train": Command(hubert.hubert_train, "pre-train a teacher on the first codes of a codec", parses=True),
    "hubert probe": Command(hubert.hubert_probe, "what a teacher's frames tell of words, speakers and sounds"),
    "clap train": Command(clap.clap_train, "train a CLAP, which embeds sounds and captions alike", parses=True),
    "music train": Command(music.music_train, "train a language model over a token store", parses=True),
    "music continue": Command(music.music_continue, "continue a recording"),
    "eval list": Command(evaluate.eval_list, "every metric: what it needs, who hears for it, what is missing"),
    "eval run": Command(evaluate.eval_run, "a suite of metrics over recordings and references, with verdicts"),
    "eval train-evaluators": Command(evaluate.train_evaluators, "small judges of generated speech from your own data"),
    "eval arch": Command(arch.eval_arch, "linear probes on the data sets of ARCH, from local folders"),
    "tts train": Command(tts.tts_train, "train VALL-E's AR and NAR over token stores of speech with text", parses=True),
    "tts say": Command(tts.tts_say, "speak a text in the voice of a recording"),
    "tts eval": Command(tts.tts_eval, "word errors and likeness of zero-shot speech, beside codec and controls"),
    "tts card": Command(tts.tts_card, "a run as a model folder for others: half precision, card, provenance"),
    "sound train": Command(sound.sound_train, "train a text-to-sound model on sounds with captions", parses=True),
    "sound make": Command(sound.sound_make, "make sounds from a caption, or from the likeness of a sound"),
    "sound eval": Command(sound.sound_eval, "classes, CLAP scores, distances and copies of made sounds, with a page"),
    "sound card": Command(sound.sound_card, "a run as a model folder for others: half precision, card, provenance"),
    "clap card": Command(clap.clap_card, "a run as a model folder for others: half precision, card, provenance"),
    "compare": Command(compare.compare, "does this codec make the language model better? one command, one verdict"),
    "export": Command(export.export, "a language model as a folder for transformers, vLLM or SGLang"),
    "music card": Command(music.music_card, "a run as a model folder for others: half precision, card, provenance"),
    "music eval": Command(music.music_eval, "bits per second of unseen music, and sets of continuations"),
}


if __name__ == "__main__":
    raise SystemExit(main())
