"""Hugging Face's folders: safetensors, config.json, the hub, and how each family's tensors are named."""
