"""Loop and output settings keep the documented defaults."""

from nemoalign.config.trainer import ExpManager, TrainerConfig
from nemoalign.config.values import Every


def test_defaults():
    trainer = TrainerConfig()
    assert trainer.devices is trainer.num_nodes is trainer.max_time is None
    assert trainer.precision == "bf16"
    assert (trainer.loop.max_epochs, trainer.loop.max_steps) == (1, -1)
    assert trainer.loop.val_check_interval == Every(100)
    assert trainer.loop.gradient_clip_val == 1.0
    manager = ExpManager()
    assert manager.resume_if_exists is True
    assert manager.explicit_log_dir is None
    assert manager.checkpoint_callback_params.monitor == "val_loss"
    assert manager.checkpoint_callback_params.save_top_k == 3
