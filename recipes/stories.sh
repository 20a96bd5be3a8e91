#!/bin/sh
# A small Llama that writes stories, as llama2.c trains them: recipes/stories.sh [TEXT] [OUT]
#
# TEXT   stories: the TinyStories (1.6 GB to fetch) where none is given, or a file with a line <|endoftext|> between them
# OUT    the run's folder (default runs/stories); the same command goes on with a run that was stopped
#
# Written for 2 MB of stories, which this reads ten times: then more training makes it learn them by heart, and dropout is
# what puts that off. With all the TinyStories take --dropout 0, and as many steps as there is time for.
set -e
out=${2:-runs/stories}
llmpy train "${1:-tinystories}" --out "$out" --resume \
    --model llama:15M --tokenizer sentencepiece:2048 --val-fraction 0.05 \
    --sequence-length 256 --batch-size 8 --steps 2600 --lr 2e-3 --dropout 0.2 \
    --eval-every 200 --eval-batches -1 --sample-prompt "Once upon a time, there was a little girl named Lily."
llmpy run "$out" "One day, Tom and Lily went to the park." -t 0.7
