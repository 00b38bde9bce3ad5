"""What megatron-core's distributed optimizer leaves in a checkpoint, read and resharded by us."""

import numpy as np
import pytest
import torch
from megatron.core import dist_checkpointing
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

from nemoalign.checkpoint.open import open_source
from nemoalign.checkpoint.reshard import reshard
from nemoalign.checkpoint.targets.cut import ReshardOptions
from nemoalign.config.checkpoint_yaml import dump_checkpoint_config
from nemoalign.errors import ContentError
from nemoalign.log import PlainReporter
from nemoalign.model.build import ModelSettings, build_model
from nemoalign.model.load import load_weights
from nemoalign.parallel.layout import ParallelLayout
from nemoalign.parallel.state import start
from tests.model import tiny

FC2 = "decoder.layers.1.mlp.linear_fc2.weight"
QUIET = PlainReporter(quiet=True)


def save(folder, sharding):
    """Take one step with megatron-core's distributed optimizer and save everything as it does."""
    model = tiny.llama()
    arch, layout = tiny.architecture(model.config), ParallelLayout(1)
    (folder / "model_weights").mkdir(parents=True)
    with start(layout, seed=1) as backend:
        (chunk,) = build_model(arch, tiny.VOCAB, layout, precision="fp32", settings=ModelSettings())
        load_weights([chunk], tiny.Store(tiny.weights(model, arch)), arch, layout, tiny.VOCAB)
        with backend.optimizer_scope():
            ddp = DistributedDataParallel(
                chunk.config, DistributedDataParallelConfig(use_distributed_optimizer=True), chunk
            )
            options = OptimizerConfig(lr=1e-3, use_distributed_optimizer=True)
            optimizer = get_megatron_optimizer(options, [ddp])
            for parameter in chunk.parameters():
                parameter.main_grad.copy_(torch.sin(parameter.data))
            optimizer.step()
            weights = chunk.sharded_state_dict(prefix="model.")
            state = optimizer.sharded_state_dict(
                {name.removeprefix("model."): one for name, one in weights.items()},
                metadata={"distrib_optim_sharding_type": sharding},
            )
        dist_checkpointing.save(
            {"model": weights, "optimizer": state}, str(folder / "model_weights")
        )
        trained = dict(chunk.named_parameters())[FC2].detach().numpy().copy()
    config = {name: value for name, value in vars(arch).items() if value is not None}
    (folder / "model_config.yaml").write_text(
        dump_checkpoint_config(config | {"mcore_gpt": True, "tokenizer": {"library": "megatron"}})
    )
    return trained


@pytest.mark.parametrize("sharding", ["dp_reshardable", "fully_reshardable"])
def test_its_weights_are_read_and_its_moments_where_they_are_whole(tmp_path, sharding):
    trained = save(tmp_path / "run", sharding)
    source = open_source(tmp_path / "run")
    np.testing.assert_array_equal(source.weights.read(FC2), trained)
    options = ReshardOptions(tp=2, with_optimizer=True)
    if sharding == "dp_reshardable":
        with pytest.raises(ContentError, match="flattened over the ranks of data parallelism"):
            reshard(tmp_path / "run", tmp_path / "m.nemo", options, reporter=QUIET)
        return
    reshard(tmp_path / "run", tmp_path / "m.nemo", options, reporter=QUIET)
    before, after = source.optimizer, open_source(tmp_path / "m.nemo").optimizer
    assert before is not None
    assert after is not None
    name = f"exp_avg.{FC2}"
    np.testing.assert_array_equal(after.read(name), before.read(name))
    assert np.abs(before.read(name)).max() > 0
