"""Text generation: scheduling, KV cache, sampling, streaming, conversations."""
