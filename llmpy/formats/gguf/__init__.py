"""GGUF, the format of llama.cpp: the container, its Llama models, its tokenizers."""
