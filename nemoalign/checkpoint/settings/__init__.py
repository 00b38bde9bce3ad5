"""Configuration and tokenizers between the forms: NeMo, NeMo 2, Hugging Face and PEFT."""
