"""What `python train.py` and `effnet train` do: help and errors for people, one run or a sweep under Hydra."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from effnet_lit.composition import compose, compose_with_preset, register_schema
from effnet_lit.config import Knob, UserError, knobs
from effnet_lit.overrides import check_keys, conf_dir, explain, with_quotes

if TYPE_CHECKING:
    from effnet_lit.training.fit import Result


def help_page() -> str:
    """What `--help` prints: the few commands that matter, then every setting with default and range."""
    lines = [
        "Train EfficientNet-B0 on a folder that holds one sub-folder of images per class.",
        "",
        "  python train.py                                    the embedded digits: does it work here?",
        "  python train.py data.dir=photos                    your images; the preset is chosen by their number",
        "  python train.py preset=small data.dir=photos       small | medium | large | auto",
        "  python train.py example=mobile_app data.dir=photos mobile_app | cloud_service | edge_device",
        "  python train.py -m preset=small,medium seed=1,2    several runs and a table",
        "  python train.py -m sweep=rates data.dir=photos     a prepared sweep: rates | recipe | optuna (conf/sweep/)",
        "  python train.py resume=runs/latest                 go on after a stop",
        "  python train.py --cfg job                          print the settings, do not train",
        "",
        "Settings are written key=value. Default and range stand in brackets; a preset sets batch_size, epochs,",
        "learning_rate, dropout_rate, augmentation and training.scratch_rate_factor.",
    ]
    group = None
    for key, facts, default in knobs():
        head = key.rpartition(".")[0]
        if head != group:
            lines += ["", f"{head}.*" if head else "main"]
            group = head
        lines += [f"  {key:<33} {facts.help} [{describe(facts, default)}]"]
    lines += ["", "Hydra's own flags: --hydra-help. Advised ranges are lifted by limits=off."]
    return "\n".join(lines)


def describe(facts: Knob, default: Any) -> str:
    """Default, unit and range of one setting, as short text."""
    if isinstance(default, dict):
        return ", ".join(f"{key}={value}" for key, value in default.items())
    shown = "null" if default is None else "empty" if default == "" else str(default)
    span = facts.card or (facts.possible if facts.possible and facts.possible.high < 1e4 else None)
    parts = [shown, " | ".join(facts.choices), f"{span.low:g} to {span.high:g}" if span else "", facts.unit]
    return "; ".join(part for part in parts if part)


def fail(error: UserError) -> NoReturn:
    """End the program the way a user's mistake ends it: one sentence, exit code 2."""
    print(f"Error: {error}", file=sys.stderr)
    sys.exit(2)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of train.py and `effnet train`: Hydra's, with help and errors for people."""
    arguments = [with_quotes(with_home(argument)) for argument in (sys.argv[1:] if arguments is None else arguments)]
    if "-h" in arguments or "--help" in arguments:
        print(help_page())
        return
    try:
        run_with_hydra(arguments)
    except UserError as error:
        fail(error)
    except KeyboardInterrupt as stop:
        print(stop if stop.args else "Stopped.", file=sys.stderr)
        sys.exit(130)


def with_home(argument: str) -> str:
    """key=~/photos with the home folder written out; shells do it for a word's beginning only."""
    return re.sub(r"^([\w.]+=)~(?=/|$)", lambda match: match[1] + str(Path.home()), argument)


def run_with_hydra(arguments: list[str]) -> None:
    """Check what can be checked at once, then hand over to Hydra for one run or a sweep."""
    parser = get_args_parser()
    parser.error = refuse_arguments
    parsed = parser.parse_args(arguments)
    if parsed.hydra_help or parsed.info or parsed.shell_completion:
        return call_hydra(train_job, arguments)
    if parsed.multirun:
        register_schema()
        check_keys(parsed.overrides)
        return run_sweep(arguments)
    if any(text.startswith("sweep=") for text in parsed.overrides):
        raise UserError("sweep= stands for several runs; add -m: python train.py -m sweep=rates.")
    config, preset = compose_with_preset(parsed.overrides)
    if config.resume is None:  # say what preset=auto chose, for `--cfg job` and for the run folder's name
        overrides = [f"preset={preset}", *(text for text in parsed.overrides if not text.startswith("preset="))]
        arguments = [*overrides, *(text for text in arguments if text not in parsed.overrides)]  # flags last
    call_hydra(train_job, arguments)


def refuse_arguments(message: str) -> NoReturn:
    """What Hydra's argument parser calls for an unknown flag."""
    raise UserError(f"{message}; settings are written key=value, python train.py --help lists them.")


def call_hydra(task: Callable[[Any], Any], arguments: Sequence[str]) -> None:
    """Run a task under hydra.main with these arguments; errors come out as exceptions, not as Hydra's report."""
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = [sys.argv[0], *arguments]
    running = False

    @wraps(task)
    def job(config: Any) -> Any:
        nonlocal running
        running = True
        result = task(config)
        running = False
        return result

    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(job)()
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, arguments)) from error
    except (NotADirectoryError, PermissionError, FileNotFoundError) as error:
        if running:  # it is not Hydra's, which makes the run folder before
            raise
        raise UserError(
            f"The run folder {error.filename} cannot be made ({error.strerror}); "
            "start from another folder, or set hydra.run.dir."
        ) from error


def train_job(_: Any) -> None:
    """A single run. A user's mistake leaves by SystemExit, which Hydra passes on without a report of its own."""
    try:
        train_once()
    except UserError as error:
        fail(error)


def train_once() -> Result:
    """One job of Hydra's: compose again from its overrides (`preset=auto` may differ per job), then fit."""
    job = HydraConfig.get()
    run_dir = Path(job.runtime.output_dir)
    try:
        config = compose(*job.overrides.task)
        from effnet_lit.training.fit import fit

        return fit(config, run_dir)
    finally:
        if run_dir.is_dir() and not any(run_dir.iterdir()):
            run_dir.rmdir()


def run_sweep(arguments: Sequence[str]) -> None:
    """Run every job, let a failing one fail alone, and end with one table, best first."""
    from effnet_lit.training.sweep import Job, conclude_sweep

    jobs: list[Job] = []

    def sweep_job(_: Any) -> float | None:
        overrides = list(HydraConfig.get().overrides.task)
        try:
            result = train_once()
        except Exception as error:  # whatever it is, the other jobs go on and the table names it
            if not isinstance(error, UserError):
                traceback.print_exc()
            jobs.append(Job(overrides, None, str(error)))
            return None
        jobs.append(Job(overrides, result, ""))
        return result.val_accuracy

    try:
        call_hydra(sweep_job, arguments)
    finally:  # after Ctrl-C too
        if jobs:
            conclude_sweep(jobs)
    if any(job.result is None for job in jobs):
        sys.exit(2)
