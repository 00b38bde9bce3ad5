"""megatron-core's GPTModel: built from a checkpoint's architecture, loaded from any layout, adapted."""
