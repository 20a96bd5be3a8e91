"""From text to batches: corpora.py and text_files.py read, prepared.py makes shards, loader.py takes batches."""
