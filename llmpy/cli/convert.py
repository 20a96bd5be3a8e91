"""Write a model, a tokenizer or a shard of tokens in another project's file format."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

EXAMPLES = """examples:
  llmpy convert runs/default model.bin               a trained model for llm.c
  llmpy convert gpt2 gpt2_124M_bf16.bin --dtype bfloat16   from the hub, in half the size
  llmpy convert gpt2_124M.bin gpt2-folder            for transformers: GPT2LMHeadModel.from_pretrained("gpt2-folder")
  llmpy convert runs/default tok.bin --to tokenizer  its tokenizer, for llm.c
  llmpy convert stories15M.bin stories15M            a Llama of llama2.c for transformers: LlamaForCausalLM
  llmpy convert SmolLM2-135M.gguf smollm.bin --dtype q8_0   for llama2.c's runq, in 8 bits
  llmpy convert data_val.bin data_val32.bin          a shard of uint16 tokens as uint32, or the other way round
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="a model (as for llmpy run), a tokenizer or a shard of tokens")
    parser.add_argument(
        "target",
        metavar="DST",
        type=Path,
        help="a .bin is written for llm.c (GPT-2) or llama2.c (Llama), a folder for Hugging Face",
    )
    parser.add_argument(
        "--to",
        choices=["llmc", "llama2c", "huggingface", "tokenizer", "shard"],
        help="what to write (default: what SRC is and DST is named)",
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "q8_0", "uint16", "uint32"],
        help="of a model's weights (default float32) or a shard's tokens (default: the other one)",
    )
    parser.add_argument("--force", action="store_true", help="write over DST if it exists")


def run(args: argparse.Namespace) -> int:
    from llmpy.tools.convert import convert

    print(convert(args.source, args.target.expanduser(), args.to, args.dtype, args.force), file=sys.stderr)
    return 0
