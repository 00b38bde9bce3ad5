"""Rows, order and limits of a run, from its configuration: everything known before a model exists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from nemoalign.config.values import DataFile
from nemoalign.data.collate import collate, collate_judged, collate_pack
from nemoalign.data.dataset import SftDataset
from nemoalign.data.encoded import Storage
from nemoalign.data.encoder import JudgedRules, SftSettings
from nemoalign.data.findings import Findings
from nemoalign.data.index import cache_directory
from nemoalign.data.judged import JudgedDataset, LabelDataset, PairDataset
from nemoalign.data.nemo_chat import TurnTokens
from nemoalign.data.packing import measure_waste
from nemoalign.data.parts import Part
from nemoalign.data.prompt_rows import PromptDataset
from nemoalign.data.prompts import read_prompts
from nemoalign.data.rewards import reward_rows
from nemoalign.data.sampler import GlobalSampler
from nemoalign.errors import DataError
from nemoalign.train.answers import FixedPrompts
from nemoalign.train.feed import Feed, Feeds
from nemoalign.train.prefetch import PrefetchingFeed
from nemoalign.train.questions import QuestionFeed
from nemoalign.train.schedule import LoopSettings, resolved

if TYPE_CHECKING:
    from nemoalign.config.schema import RunConfig
    from nemoalign.data.tokenizer import Tokenizer
    from nemoalign.parallel.layout import ParallelLayout

_JUDGED_ROWS = 4096

SPLITS = ("train", "validation", "test")
DATASETS = {
    "texts": SftDataset,
    "pairs": PairDataset,
    "labels": LabelDataset,
    "prompts": PromptDataset,
}
"""What an algorithm's rows are read as."""


@dataclass(frozen=True)
class Inputs:
    """The rows of a run and what follows from their number."""

    train: SftDataset | None
    validation: SftDataset | None
    test: SftDataset | None
    sampler: GlobalSampler | None
    limits: LoopSettings
    prompts: FixedPrompts | None = None

    @cached_property
    def findings(self) -> Findings:
        """What is known of the data."""
        return Findings.of(self.train, self.validation, self.test)

    @property
    def any_rows(self) -> SftDataset | None:
        """The rows of the first split there is."""
        return self.train or self.validation or self.test

    def empty_rows(self) -> int:
        """Return how many rows this rank used that had nothing to learn; of large files only."""
        return sum(rows.empty_rows for rows in (self.train, self.validation, self.test) if rows)


def read_inputs(config: RunConfig, tokenizer: Tokenizer) -> Inputs:
    """Return the rows of ``config`` with their order, the length of the run and its schedule.

    Raises:
        DataError: for rows that cannot be used, or fewer than one global batch.
    """
    data = config.model.data
    train = _dataset(data.train_ds.file_path, config, tokenizer, SPLITS[0])
    validation = _dataset(data.validation_ds.file_path, config, tokenizer, SPLITS[1])
    test = _dataset(data.test_ds.file_path, config, tokenizer, SPLITS[2])
    sampler = None
    if train is not None and config.trainer.loop.max_steps != 0:
        _check_prompts(len(train), config)
        sampler = GlobalSampler(
            total_samples=len(train),
            global_batch_size=rows_of_step(config),
            seed=config.model.seed,
            shuffle=config.model.data.train_ds.shuffle,
            # Where it does make a difference, as for a mean per micro-batch, rows stay in their order.
            lengths=train.lengths if _may_sort(config) else None,
        )
    return Inputs(
        train, validation, test, sampler, _limits(config, sampler), _prompts(config, tokenizer)
    )


def make_feeds(
    inputs: Inputs, config: RunConfig, layout: ParallelLayout, dp_rank: int, eos_id: int
) -> Feeds:
    """Return this rank's share of everything a run learns from and measures on."""
    train = None
    if inputs.train is not None and inputs.sampler is not None:
        feed = PrefetchingFeed if inputs.train.has_large else Feed
        if isinstance(inputs.train, PromptDataset):
            feed = QuestionFeed
        train = feed(
            inputs.train, inputs.sampler, **_share(inputs.train, config, layout, dp_rank, eos_id)
        )
    validation, test = (
        None if rows is None else measuring_feed(rows, config, layout, dp_rank, eos_id)
        for rows in (inputs.validation, inputs.test)
    )
    return Feeds(train, validation, test, inputs.prompts)


def measuring_feed(
    rows: SftDataset, config: RunConfig, layout: ParallelLayout, dp_rank: int, eos_id: int
) -> Feed:
    """Return this rank's share of rows that are computed once, in file order."""
    sources = rows.sources if len(rows.files) > 1 else []
    asks = isinstance(rows, PromptDataset)
    own: Any = config.model.algorithm
    count = min(len(rows), own.num_val_samples or len(rows)) if asks else len(rows)
    order = GlobalSampler(
        total_samples=count,
        global_batch_size=own.num_rollout_samples if asks else config.model.global_batch_size,
        shuffle=False,
        drop_last=False,
        lengths=rows.lengths if _may_sort(config) else None,
        borders=[end for _, end in sources[:-1] if end < count],
    )
    share = _share(rows, config, layout, dp_rank, eos_id)
    return (QuestionFeed if asks else Feed)(rows, order, **share, sources=sources)


def rows_of_step(config: RunConfig) -> int:
    """Return how many rows of its data a run takes in one step."""
    own: Any = config.model.algorithm
    return own.prompts if own.rows == "prompts" else config.model.global_batch_size


def _check_prompts(count: int, config: RunConfig) -> None:
    own: Any = config.model.algorithm
    if own.rows == "prompts" and count < own.prompts:
        raise DataError(
            f"The training data has {count} usable prompts, fewer than the {own.prompts} of one step "
            f"(--rollouts {own.num_rollout_samples}, {own.answers} answers to each). Use --rollouts "
            f"{count * own.answers} or less, or each prompt more often: --data FILE:{-(-own.prompts // count)}"
        )


def _share(
    rows: SftDataset, config: RunConfig, layout: ParallelLayout, dp_rank: int, eos_id: int
) -> dict[str, Any]:
    """Return how a rank lays rows into micro-batches."""
    pad_to = layout.tp if layout.splits_sequence else 1
    capacity = _pack_capacity(rows, config)
    join = partial(collate if capacity is None else collate_pack, eos_id=eos_id, pad_to=pad_to)
    is_judged = isinstance(rows, JudgedDataset)
    return {
        "collate": partial(collate_judged, join=join) if is_judged else join,
        "pack_capacity": capacity,
        "dp_rank": dp_rank,
        "dp_size": layout.dp,
        "micro_batch_size": config.model.micro_batch_size,
        # The interleaved schedule hands micro-batches round in groups of pp.
        "multiple_of": layout.pp if layout.vp else 1,
    }


def packing_report(inputs: Inputs, config: RunConfig, layout: ParallelLayout) -> list[str]:
    """Return what packing does to an epoch, judged by its first rows; nothing without packing."""
    sampler, train = inputs.sampler, inputs.train
    if isinstance(train, PromptDataset):
        return []
    capacity = None if train is None else _pack_capacity(train, config)
    if capacity is None or sampler is None or train is None:
        return []
    size, steps = sampler.global_batch_size, sampler.steps_per_epoch
    judged = min(steps, inputs.limits.max_steps, -(-_JUDGED_ROWS // size))
    batches = (sampler.batch(step * size) for step in range(judged))
    lengths = ([train.length(int(row)) for row in batch] for batch in batches)
    waste = measure_waste(lengths, capacity, layout.dp, config.model.micro_batch_size)
    return [
        f"packing: {sampler.samples_per_epoch:,} rows an epoch in {steps:,} steps of about "
        f"{waste.packs_per_step:.1f} packs of at most {capacity:,} tokens; {waste.padding:.0%} padding "
        f"({waste.padding_without:.0%} without)"
    ]


def _may_sort(config: RunConfig) -> bool:
    """True when it makes no difference which rows of a global batch share a micro-batch."""
    own = config.model.algorithm
    if own.rows == "prompts":
        return False
    averages_micro_batches = getattr(own, "loss_average", None) == "micro_batches"
    return not averages_micro_batches and getattr(own, "kl_estimate", None) != "micro_batch"


def _pack_capacity(rows: SftDataset, config: RunConfig) -> int | None:
    data = config.model.data.train_ds
    if not data.packed_sequence:
        return None
    return config.model.micro_batch_size * rows.answers * data.max_seq_length


def _dataset(
    files: Sequence[DataFile], config: RunConfig, tokenizer: Tokenizer, split: str
) -> SftDataset | None:
    if not files:
        return None
    paths = [(file.path, 1.0 if file.weight is None else file.weight) for file in files]
    storage = storage_of(config)
    own: Any = config.model.algorithm
    settings = replace(
        row_settings(config), judged=_judged_rules(own, split), part=_part(config, split)
    )
    kind = reward_rows(own) if own.rows == "rewards" else DATASETS[own.rows]
    return kind(paths, tokenizer, settings, split, storage)


def _part(config: RunConfig, split: str) -> Part | None:
    shares = config.model.data.shares
    if shares is None:
        return None
    number = SPLITS.index(split)
    return Part(split, sum(shares[:number]), sum(shares[: number + 1]), config.model.seed)


def _judged_rules(own: Any, split: str) -> JudgedRules:
    if own.rows == "pairs":
        return JudgedRules(default_rewards=(own.default_chosen_reward, own.default_rejected_reward))
    if own.rows == "labels":
        weights = own.desirable_loss_weight, own.undesirable_loss_weight
        return JudgedRules(
            partner_step=-1 if own.mismatched_answer == "previous" else 1,
            label_weights=weights if split == "train" else None,
        )
    return JudgedRules()


def storage_of(config: RunConfig) -> Storage:
    """Return where what is found in files is kept."""
    return Storage(
        index_directory=config.model.data.train_ds.index_mapping_dir or cache_directory(),
        ahead_bytes=config.model.data.tokenize_ahead_megabytes * 1_000_000,
    )


def _prompts(config: RunConfig, tokenizer: Tokenizer) -> FixedPrompts | None:
    asked = config.model.data.validation_ds
    if asked.prompts_path is None:
        return None
    prompts = read_prompts(asked.prompts_path, tokenizer, row_settings(config))
    return FixedPrompts(prompts, tokenizer, asked.tokens_to_generate)


def row_settings(config: RunConfig) -> SftSettings:
    """Return how rows become tokens."""
    rules: Any = config.model.data.train_ds
    return SftSettings(
        max_seq_length=rules.max_seq_length,
        format=config.model.data.format,
        prompt_template=rules.prompt_template,
        label_key=rules.label_key,
        truncation_field=rules.truncation_field,
        truncation_method=rules.truncation_method,
        add_bos=rules.add_bos,
        add_sep=rules.add_sep,
        add_eos=rules.add_eos,
        overlong=rules.overlong,
        mask=getattr(config.model.algorithm, "mask", "assistant"),
        turns=TurnTokens(**asdict(config.model.data.chat_prompt_tokens)),
    )


def _limits(config: RunConfig, sampler: GlobalSampler | None) -> LoopSettings:
    loop = config.trainer.loop
    per_epoch = sampler.steps_per_epoch if sampler is not None else 1
    max_steps = per_epoch * loop.max_epochs if sampler is not None else 0
    if loop.max_steps >= 0:
        max_steps = min(max_steps, loop.max_steps)
    return LoopSettings(
        max_steps=max_steps,
        steps_per_epoch=per_epoch,
        global_batch_size=rows_of_step(config),
        val_every=loop.val_check_interval.steps(per_epoch),
        save_every=loop.save_interval.steps(per_epoch),
        max_seconds=config.trainer.max_time.seconds if config.trainer.max_time else None,
        schedule=resolved(config.model.optim, max_steps),
        max_skipped=loop.max_skipped_steps,
        patience=config.exp_manager.early_stopping.patience,
        min_delta=config.exp_manager.early_stopping.min_delta,
        monitor=config.exp_manager.checkpoint_callback_params.monitor,
        mode=config.exp_manager.checkpoint_callback_params.mode,
    )
