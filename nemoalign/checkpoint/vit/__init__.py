"""NeMo's ViT classifiers, beside language models and not among them: the same doors, tables of their own."""
