"""The Typer application and the one place where errors become exit codes."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import typer

import dspkd
from dspkd.cli import augmenting, comparing, data, doctor, measuring, preparing, sharing, training, using
from dspkd.errors import DspkdError

__all__ = ["app", "main"]

app = typer.Typer(
    name="dspkd",
    help="Distil a large skin-lesion classifier into a small one, export it with proof, and measure it where it runs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 ok, 1 error, 2 usage, 3 gate failed, 4 verification failed, 5 device or package missing, "
    "6 inconclusive.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dspkd {dspkd.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", help="Print the version and exit.", callback=_version, is_eager=True
    ),
) -> None:
    pass


_VERBS: dict[str, Callable[..., None]] = {
    "demo": training.demo,
    "train": training.train,
    "distill": training.distill,
    "compare": comparing.compare,
    "eval": using.evaluate,
    "predict": using.predict,
    "export": sharing.export,
    "verify": sharing.verify,
    "bench": measuring.bench,
    "report": measuring.report,
    "doctor": doctor.doctor,
}


def _reflowed(docstring: str) -> str:
    """Paragraphs without the line ends of the source, which Typer would keep."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in docstring.split("\n\n"))


for _name, _verb in _VERBS.items():
    app.command(_name, help=_reflowed(_verb.__doc__ or ""))(_verb)

_DATA_VERBS: dict[str, Callable[..., None]] = {
    "check": data.check,
    "prepare": preparing.prepare,
    "augment": augmenting.augment,
}
for _name, _verb in _DATA_VERBS.items():
    data.app.command(_name, help=_reflowed(_verb.__doc__ or ""))(_verb)
app.add_typer(data.app, name="data", help="Look at a data set, and decode it, before anything is trained on it.")


def main() -> None:
    """Entry point of the `dspkd` command. `DSPKD_DEBUG=1` shows the traceback of an expected error too."""
    try:
        app(standalone_mode=True)
    except DspkdError as error:
        if os.environ.get("DSPKD_DEBUG"):
            raise
        # Messages quote what libraries say, which may be several lines; a log or a script reads one.
        text = f"{error.message.strip()}{f' - {error.hint}' if error.hint else ''}"
        text = " ".join(line.strip() for line in text.splitlines())
        sys.stderr.write(f"dspkd: error: {text}\n")
        _tell_torchrun(text)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("dspkd: interrupted; finished epochs are kept: repeat the command with --resume\n")
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)


def _tell_torchrun(text: str) -> None:
    """What a process leaves in this file, torchrun names as the cause when it ends the others."""
    if place := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        with suppress(OSError):
            Path(place).write_text(json.dumps({"message": text, "timestamp": int(time.time())}), encoding="utf-8")
