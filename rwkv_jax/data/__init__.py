"""Records, the catalog of named datasets, the tokenizer, and the loader that turns records into batches."""
