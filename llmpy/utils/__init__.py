"""Helpers that know nothing of language models: files, downloads, progress bars, random numbers, memory."""
