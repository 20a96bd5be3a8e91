#!/bin/sh
# A small Llama that writes stories, as llama2.c trains them: recipes/stories.sh TEXT [OUT]
#
# TEXT   a file of stories, a line <|endoftext|> between them
# OUT    the run's folder (default runs/stories); the same command goes on with a run that was stopped
#
# Written for 2 MB of stories, which this reads ten times: then more training makes it learn them by heart, and dropout is
# what puts that off. Of all the TinyStories docs/stories.md has the commands.
set -e
text=${1:?a file of stories is needed: recipes/stories.sh TEXT [OUT]}
out=${2:-runs/stories}
llmpy train "$text" --out "$out" --resume \
    --model llama:15M --tokenizer sentencepiece:2048 --val-fraction 0.05 \
    --sequence-length 256 --batch-size 8 --steps 2600 --lr 2e-3 --dropout 0.2 \
    --eval-every 200 --eval-batches -1 --sample-prompt "Once upon a time, there was a little girl named Lily."
llmpy run "$out" "One day, Tom and Lily went to the park." -t 0.7
