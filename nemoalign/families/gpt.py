"""Any other GPT of megatron-core: read, inspected and trained, without a Hugging Face counterpart."""

from nemoalign.weights.rules import Family

FAMILY = Family(name="gpt")
