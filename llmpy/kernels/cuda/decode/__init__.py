"""Decode steps on the GPU: fused few-row linear layers over stored weights, split-KV attention."""
