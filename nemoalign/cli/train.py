"""The commands that run a model: one per row of the table of algorithms, all the same few steps.

merge -> check -> (print or plan) -> find the ranks, start them or be one -> train -> show.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemoalign.cli import flags
from nemoalign.cli.spec import CommandSpec, Positional, Talk
from nemoalign.config.algorithms import ALGORITHMS, AlgorithmRow
from nemoalign.config.fields import own_settings, setting
from nemoalign.config.presets import PRESETS
from nemoalign.errors import SourceError
from nemoalign.log import speaking_rank

if TYPE_CHECKING:
    from nemoalign.config.merged import Merged
    from nemoalign.log import Reporter
    from nemoalign.parallel.world import World
    from nemoalign.train.stopping import Requests

PANEL = "Configuration"


@dataclass(frozen=True, kw_only=True)
class TrainFlags(Talk):
    """Flags of every training command that set no key themselves."""

    config: tuple[Path, ...] = setting(
        (),
        "YAML settings, NeMo-Aligner's files too; repeat it, later files win. nemoalign.yaml in this "
        "directory comes first.",
        flag="--config",
        short="-c",
        metavar="FILE",
        path_kind="file",
        panel=PANEL,
    )
    set: tuple[str, ...] = setting(
        (),
        "Set any key, flag or not; wins over files and environment, flags win over it.",
        flag="--set",
        short="-s",
        metavar="KEY=VALUE",
        panel=PANEL,
    )
    dry_run: bool = setting(
        False,
        "Resolve settings, checkpoint, data and layout; train nothing.",
        flag="--dry-run",
        short="-n",
        panel=PANEL,
    )
    preset: str | None = setting(
        None,
        "Start from the defaults and normalisations of a peer instead of ours; what you set wins.",
        flag="--preset",
        choices=tuple(PRESETS),
        shown="none",
        panel=PANEL,
    )
    print_config: bool = setting(
        False,
        "Print the merged settings with the source of every value.",
        flag="--print-config",
        panel=PANEL,
    )


def _spec(row: AlgorithmRow) -> CommandSpec:
    return CommandSpec(
        name=row.name,
        summary=row.summary,
        panel=row.panel,
        example=row.example,
        positional=Positional(
            name="overrides",
            metavar="KEY=VALUE",
            help="The same as --set KEY=VALUE, as Hydra writes it.",
            is_list=True,
            panel=PANEL,
        ),
        entries=[*row.flags(), *own_settings(TrainFlags)],
        run=partial(_run, row),
    )


def _run(row: AlgorithmRow, typed: Mapping[str, Any]) -> None:
    """Run one training command from what was typed, by parameter name."""
    from nemoalign.cli import show
    from nemoalign.launch.lifeline import PARENT
    from nemoalign.parallel.world import find_world
    from nemoalign.train.stopping import Requests

    known = flags.read(TrainFlags, typed)
    if known.print_config:
        show.config(_merge(row, known, typed), as_json=known.json)
        return
    # A rank that srun or torchrun started must not leave the others waiting.
    is_alone = find_world(os.environ) is None or PARENT in os.environ
    with nullcontext() if known.dry_run else Requests(is_alone=is_alone) as requests:
        _carry_out(row, known, typed, requests)


def _carry_out(
    row: AlgorithmRow, known: TrainFlags, typed: Mapping[str, Any], requests: Requests | None
) -> None:
    """Train, or with ``--dry-run`` tell what would be done; in this process or in ranks started here."""
    from nemoalign.cli import show

    merged = _merge(row, known, typed)
    world, ranks = _resolve(merged)
    own: Any = merged.config.model.algorithm
    if own.trains and not getattr(own, "score_path", ()):
        merged = _with_output(merged, world, create=not known.dry_run)
    if world is None and ranks > 1 and not known.dry_run:
        _start(merged, ranks)
        return
    _prepare_process(world, ranks)
    reporter = show.make_reporter(quiet=known.quiet)
    for note in merged.notes:
        reporter.say(note)
    for warning in merged.warnings:
        reporter.warn(warning)

    result = _work(merged, known, reporter, requests)
    if not speaking_rank():
        return
    if "texts" in result and not known.json:
        show.answers(result["texts"])
    else:
        show.run_result(result, as_json=known.json, with_ranks=known.verbose)


def _work(
    merged: Merged, known: TrainFlags, reporter: Reporter, requests: Requests | None
) -> dict[str, Any]:
    """Do what was asked for on this rank, and return its result."""
    own: Any = merged.config.model.algorithm
    if known.dry_run:
        from nemoalign.run.prepare import plan

        return plan(merged, reporter)
    if getattr(own, "score_path", ()):
        from nemoalign.run.score import score

        return score(merged, reporter, requests)
    if not own.trains:
        from nemoalign.cli import show
        from nemoalign.run.answer import answer

        return answer(merged, reporter, requests, None if known.json else show.stream)
    from nemoalign.run.train import train

    return train(merged, reporter, requests)


def _merge(row: AlgorithmRow, known: TrainFlags, typed: Mapping[str, Any]) -> Merged:
    from nemoalign.config.layers import Said
    from nemoalign.config.merge import merge_run

    return merge_run(
        row.name,
        Said(
            flags=flags.given(row.flags(), typed),
            sets=[*known.set, *(typed["overrides"] or [])],
            configs=known.config,
            preset=known.preset,
        ),
        _model_config,
    )


def _model_config(path: Path) -> Mapping[str, Any]:
    from nemoalign.checkpoint.open import open_source

    return open_source(path).config


def _resolve(merged: Merged) -> tuple[World | None, int]:
    """Return the ranks that exist and how many there will be; refuse what cannot work, early."""
    from nemoalign.config.architecture import Architecture
    from nemoalign.config.check import check_complete
    from nemoalign.launch.wanted import wanted_ranks
    from nemoalign.parallel.layout import ParallelLayout
    from nemoalign.parallel.world import find_world

    config, model = merged.config, merged.config.model
    check_complete(config, merged.algorithm, sys.argv[2:])
    data = model.data
    prompts = data.validation_ds.prompts_path
    for flag, files in (
        ("--data", [file.path for file in data.train_ds.file_path]),
        ("--val", [file.path for file in data.validation_ds.file_path]),
        ("--test", [file.path for file in data.test_ds.file_path]),
        ("--val-prompts", [prompts] if prompts else []),
        ("--score", getattr(model.algorithm, "score_path", ())),
        ("--data", getattr(model.algorithm, "prompts_path", ())),
    ):
        missing = [path for path in files if not path.is_file()]
        if missing:
            raise SourceError(f"There is no file {missing[0]}; {flag} names it.")
    for flag, name in (("--ref", "reference_path"), ("--critic", "critic_path")):
        start = getattr(model.algorithm, name, None)
        if start is not None and not start.exists():
            raise SourceError(f"There is nothing at {start}; {flag} names it.")
    world = find_world(os.environ)
    ranks = wanted_ranks(config, world, os.environ)
    layout = ParallelLayout(
        world_size=ranks,
        tp=model.tensor_model_parallel_size,
        pp=model.pipeline_model_parallel_size,
        cp=model.context_parallel_size,
        ep=model.expert_model_parallel_size,
        vp=model.virtual_pipeline_model_parallel_size,
        sequence_parallel=model.sequence_parallel,
    )
    layout.check(Architecture.from_nemo(merged.checkpoint_config))
    if model.algorithm.trains:
        layout.num_microbatches(model.global_batch_size, model.micro_batch_size)
    return world, ranks


def _with_output(merged: Merged, world: World | None, *, create: bool) -> Merged:
    """Return the run with a run directory; without -o it is the first that fits or is free."""
    if merged.config.exp_manager.explicit_log_dir is not None:
        return merged
    from nemoalign.cli.rundir import choose_directory

    return merged.with_output(choose_directory(merged, world, os.environ, create=create))


def _start(merged: Merged, ranks: int) -> None:
    """Run this command line again in every rank, in the run directory chosen here, if there is one."""
    from nemoalign.launch.ranks import start_ranks
    from nemoalign.launch.wanted import OUTPUT, rank_command
    from nemoalign.parallel.world import threads_per_rank

    output = merged.config.exp_manager.explicit_log_dir
    environ = os.environ if output is None else {**os.environ, OUTPUT: str(output)}
    threads = threads_per_rank(ranks, os.environ)
    start_ranks(rank_command(sys.argv[1:]), ranks, environ, threads=threads)


def _prepare_process(world: World | None, ranks: int) -> None:
    """Set what torch reads when it is imported: who we are, and how many threads are ours."""
    from nemoalign.parallel.world import threads_per_rank

    local_ranks = 1
    if world is not None:
        world.enter(os.environ)
        local_ranks = world.local_size
    else:
        os.environ["WORLD_SIZE"] = str(ranks)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads_per_rank(local_ranks, os.environ)))
    # libgomp's threads spin between loops; on cores that others use too that made training ten times
    # slower. A short spin costs an idle machine nothing that could be measured.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")


COMMANDS = tuple(_spec(row) for row in ALGORITHMS.values())
