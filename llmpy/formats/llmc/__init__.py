"""llm.c's files: models, debug states, token shards."""
