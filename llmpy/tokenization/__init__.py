"""Tokenizers: bytes, BPE, SentencePiece; their files, and how they are trained."""
