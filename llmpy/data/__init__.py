"""From text to batches: corpora.py and text_files.py read text, prepared.py makes shards of it, loader.py takes batches."""
