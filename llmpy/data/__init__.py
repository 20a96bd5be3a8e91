"""Data: corpora.py and text_files.py read text, prepare.py writes token shards, dataloader.py reads batches."""
