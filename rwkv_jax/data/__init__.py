"""Datasets, the tokenizer, and the loader that turns records into batches."""
