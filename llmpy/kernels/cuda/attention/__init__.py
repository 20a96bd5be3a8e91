"""Flash attention on the GPU: forward, backward, block sizes."""
