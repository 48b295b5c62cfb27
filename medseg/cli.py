"""``medseg <verb> [key=value ...]``: composes a config, calls one function, turns errors into exit codes. No logic."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from medseg.errors import MedsegError, UsageError, nearest
from medseg.termination import Terminated, sigterm_raises

if TYPE_CHECKING:
    from medseg.settings.base import Settings

COMMANDS = {
    "check": ("medseg.data.check", "check_command", "verify every case of a dataset"),
    "prepare": ("medseg.data.prepare", "prepare_command", "fingerprint, plan and preprocess a dataset"),
    "pretrain": ("medseg.training.pretrain", "pretrain_command", "train an encoder on images without labels"),
    "train": ("medseg.training", "train_command", "train a network and validate it"),
    "adapt": ("medseg.training.adapting", "adapt_command", "fit a part of a trained model to a new site"),
    "predict": ("medseg.inference", "predict_folder", "segment files with a trained model"),
    "evaluate": ("medseg.evaluate_model", "evaluate_command", "compare predictions with references"),
    "compare": ("medseg.evaluation.compare_command", "compare_command", "test evaluations against each other"),
    "export": ("medseg.inference.export", "export_command", "write a model for ONNX Runtime or MONAI"),
    "models": ("medseg.models", "models_command", "list the architectures"),
    "skips": ("medseg.models.skip_table", "skips_command", "list the parts of skip paths and what they cost"),
}
FLAGS = """flags:
  -h, --help          this text, or the keys of a verb
  -m, --multirun      run every combination: model=unet,unetpp_nnunet seed=0,1,2 (hydra/launcher=slurm: on a cluster)
  --config-dir DIR    also search DIR for configs (DIR/model/mine.yaml: model=mine)
  --cfg               print the composed config and stop
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the ``medseg`` command; always ends in ``SystemExit``."""
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        trust_no_folder()
    try:
        with sigterm_raises():
            code = run(words)
        sys.stdout.flush()
        sys.exit(code)
    except MedsegError as error:
        fail(error, words, error.exit_code)
    except KeyboardInterrupt:
        print("medseg: interrupted", file=sys.stderr)
        sys.exit(130)
    except Terminated:
        print("medseg: terminated by SIGTERM", file=sys.stderr)
        sys.exit(143)
    except BrokenPipeError:  # the reader of our output, e.g. head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except MemoryError as error:
        fail(error, words, 4)
    except OSError as error:
        fail(error, words, 4 if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES) else 1)
    except Exception as error:
        fail(error, words, 1)


def fail(error: BaseException, words: Sequence[str], code: int) -> None:
    """One line on stderr, with a traceback if the user wants it or the fault is ours."""
    if code == 1 or "debug=true" in words:
        import traceback

        traceback.print_exception(error)
    ours = " This is a bug in medseg; please report it with the lines above." if code == 1 else ""
    print(f"medseg: {type(error).__name__}: {error}{ours}", file=sys.stderr)
    sys.exit(code)


def run(words: list[str]) -> int:
    """Do what the words say; returns the exit code."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if words[0] == "--version":
        print(f"medseg {importlib.import_module('medseg').__version__}")
        return 0
    verb, rest = words[0], words[1:]
    if verb not in COMMANDS:
        raise UsageError(f"there is no verb '{verb}': {nearest(verb, COMMANDS)}")
    overrides, config_dir, flags = split_flags(rest)
    if "help" in flags:
        from medseg.help import verb_help

        print(verb_help(verb, overrides, config_dir))
        return 0
    from medseg.compose import check_repeated, compose
    from medseg.launch import launch, split_launcher
    from medseg.sweep import sweep

    check_repeated(overrides)
    overrides, launcher = split_launcher(overrides)
    if launcher and "multirun" not in flags:
        raise UsageError("hydra/launcher sends the jobs of a multirun", fix="add --multirun")
    jobs = sweep(verb, overrides, config_dir) if "multirun" in flags else []
    configs = [config for _, config in jobs] or [compose(verb, overrides, config_dir)]
    if "cfg" in flags:
        from medseg.io import to_json

        print("".join(map(to_json, configs)), end="")
        return 0
    settings = [checked(verb, config) for config in configs]  # all of them, before the first one runs
    if launcher:
        return launch(verb, [job for job, _ in jobs], launcher)
    if not jobs:
        return call(verb, settings[0])
    return run_jobs(verb, [job for job, _ in jobs], settings)


def run_jobs(verb: str, jobs: Sequence[list[str]], settings: Sequence[Settings]) -> int:
    """One run after the other; the worst exit code counts."""
    codes = []
    for number, (words, one) in enumerate(zip(jobs, settings, strict=True), start=1):
        print(f"medseg: job {number} of {len(jobs)}: {' '.join(words)}", flush=True)
        codes.append(call(verb, one))
    return max(codes)


def checked(verb: str, config: dict[str, Any]) -> Settings:
    """Import what the user plugs in, then the settings, which may name it. Raises UsageError."""
    from medseg.settings import settings_of

    plugins = config.get("plugins")
    for plugin in plugins if isinstance(plugins, list) else ():
        if isinstance(plugin, str):
            plug_in(plugin)
    return settings_of(verb, config)


def plug_in(name: str) -> None:
    """Import a module of the user's, from the working folder too, which is searched last. Raises UsageError."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        importlib.import_module(name)
    except (ImportError, ValueError) as error:
        raise UsageError(f"plugins: cannot import '{name}' ({error})", fix="check name and folder") from error


def trust_no_folder() -> None:
    """Take the working folder, which ``python -m`` searches first, off the path, here and in processes to come.

    Else a file of the user's that is called like a library would be run instead of it.
    """
    sys.path[:] = [folder for folder in sys.path if folder not in ("", os.getcwd())]
    os.environ["PYTHONSAFEPATH"] = "1"


def call(verb: str, settings: Settings) -> int:
    """Import the verb's function and call it."""
    module, function, _ = COMMANDS[verb]
    return int(getattr(importlib.import_module(module), function)(settings.to_config()) or 0)


def split_flags(words: Sequence[str]) -> tuple[list[str], str | None, set[str]]:
    """Overrides, the user's config folder, and the other flags."""
    overrides: list[str] = []
    flags: set[str] = set()
    config_dir = None
    names = {"-m": "multirun", "--multirun": "multirun", "--cfg": "cfg", "-h": "help", "--help": "help"}
    iterator = iter(words)
    for word in iterator:
        if word in names:
            flags.add(names[word])
        elif word == "job" and "cfg" in flags:
            continue  # Hydra's spelling: --cfg job
        elif word == "--config-dir" or word.startswith("--config-dir="):
            config_dir = os.path.expanduser(word.partition("=")[2] or next(iterator, ""))
            if not os.path.isdir(config_dir):
                raise UsageError(f"--config-dir {config_dir!r} is not a folder")
        elif word.startswith("-"):
            raise UsageError(f"unknown flag '{word}': {nearest(word, [*names, '--config-dir'])}")
        elif word.startswith("=") or ("=" not in word and not word.startswith("~")):
            before = f"{overrides[-1]} {word}" if overrides else "key=a value with spaces"
            fix = f"write settings as key=value, with quotes where there are spaces: '{before}'"
            raise UsageError(f"'{word}' is not key=value", fix=fix)
        else:
            overrides.append(word)
    return overrides, config_dir, flags


def usage() -> str:
    """Text of ``medseg --help``."""
    verbs = "\n".join(f"  {verb:<10} {text}" for verb, (_, _, text) in COMMANDS.items())
    keys = "Keys of a verb: medseg VERB --help, and of a model: medseg train model=unetpp --help"
    return f"usage: medseg VERB [key=value ...]\n\nverbs:\n{verbs}\n\n{FLAGS}\n{keys}"


if __name__ == "__main__":
    main()
