"""The models: one file a family (gpt2.py, llama.py), and registry.py, which makes the families known."""
