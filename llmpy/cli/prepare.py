"""Turn text into shards of tokens, ready to train on. `llmpy train` does so by itself; this keeps and shows them."""

from __future__ import annotations

import argparse

EXAMPLES = """examples:
  llmpy prepare shakespeare --tokenizer gpt2              Tiny Shakespeare as llm.c has it
  llmpy prepare tinystories --tokenizer bpe:4096          the TinyStories, 1.6 GB to fetch
  llmpy prepare tinystories --tokenizer sentencepiece:4096   in tokens as llama2.c trains them
  llmpy prepare tinystories --tokenizer llama2            in those of Llama 2, llama2.c's default
  llmpy prepare my-book.txt --tokenizer bytes             your own text
  llmpy prepare "notes/**/*.md" --out data/notes          every file that a glob matches
  llmpy prepare chats.jsonl --field content               the text in field "content" of each line
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        nargs="?",
        default="python-docs",
        metavar="SOURCE",
        help="python-docs (the manual inside Python), shakespeare, tinystories, or a .txt, .md or .jsonl file, a "
        "folder of them, or a glob (default: python-docs)",
    )
    parser.add_argument(
        "--tokenizer",
        default="bpe:3072",
        metavar="KIND",
        help="bytes, gpt2, llama2, bpe:N or sentencepiece:N (N tokens, trained on the text as GPT-2 or Llama have "
        "them), a tokenizer's file, or a model's folder or name (default: bpe:3072)",
    )
    parser.add_argument("--out", metavar="DIR", help="folder for the result (default: one in the cache)")
    parser.add_argument(
        "--val-fraction",
        type=float,
        metavar="F",
        help="how much of the text is held out for validation (default: 0.1, less of more than 50 MB)",
    )
    parser.add_argument("--field", default="text", metavar="NAME", help="field of the text in .jsonl (default: text)")


def run(args: argparse.Namespace) -> int:
    from llmpy.data.prepare import prepare

    data = prepare(args.source, args.tokenizer, args.out, val_fraction=args.val_fraction, field=args.field)
    tokens = data.train_tokens + data.val_tokens
    print(f"text       {data.title}: {data.documents:,} documents, {data.characters:,} characters")
    print(f"tokenizer  {data.tokenizer_name}, {data.vocab_size:,} tokens: {data.tokenizer}")
    print(f"tokens     {tokens:,}, one for {data.characters / tokens:.2f} characters")
    print(f"train      {data.train_tokens:,} tokens: {data.train}")
    print(f"validate   {data.val_tokens:,} tokens: {data.val}")
    return 0
