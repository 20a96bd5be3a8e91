"""Vocabularies trained on text: the merges of a byte-pair encoding, the pieces of a SentencePiece model."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable

from llmpy.errors import UserError
from llmpy.tokenization.sentencepiece_files import Pieces, parse_model
from llmpy.tokenization.tokenizer_files import piece_to_bytes, valid_text

_LONGEST_LINE = 1 << 16  # bytes; SentencePiece passes over what is longer


def is_trained(spec: str) -> bool:
    """Does a `--tokenizer` ask for one that is trained on the text?"""
    return spec.startswith(("bpe:", "sentencepiece:"))


def trained_size(spec: str) -> int:
    """ "bpe:1024" -> 1024. UserError if it is no number, or too small for the bytes and the special tokens."""
    kind, _, number = spec.partition(":")
    if not number.isascii() or not number.isdigit():
        raise UserError(f"tokenizer {spec!r}: N in {kind}:N is a whole number, like {kind}:1024")
    least, of = (
        (257, "the bytes and end-of-text") if kind == "bpe" else (260, "the bytes, three special tokens, a letter")
    )
    if not least <= int(number) <= 1_000_000:
        raise UserError(f"tokenizer {spec!r}: N must be from {least} ({of}) to 1000000")
    return int(number)


def byte_pair_tokens(texts: Iterable[str], vocab_size: int) -> list[bytes]:
    """The 256 bytes and then the merges, in their order: `vocab_size`, or fewer if the texts have no more to merge.

    The same texts give the same tokens, on any number of threads.
    """
    from tokenizers import Tokenizer as Trained
    from tokenizers import models, pre_tokenizers, trainers

    trained = Trained(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator((valid_text(text) for text in texts), trainer)
    ids = trained.get_vocab()
    return [piece_to_bytes(piece) or b"" for piece in sorted(ids, key=ids.__getitem__)]


def sentencepiece_pieces(texts: Iterable[str], vocab_size: int) -> Pieces:
    """A SentencePiece model trained on the lines of the texts, with the settings of llama2.c's train_vocab.

    `vocab_size` pieces, or fewer if the texts have no more to merge. Raises UserError where their characters alone are
    more than that.
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line for text in texts for line in valid_text(text).split("\n") if line),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            self_test_sample_size=0,
            character_coverage=1.0,
            num_threads=os.cpu_count() or 1,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            unk_surface=r" \342\201\207 ",
            normalization_rule_name="identity",
            max_sentence_length=_LONGEST_LINE,
            minloglevel=2,  # no report on stderr
        )
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[-200:]
        raise UserError(
            f"cannot train sentencepiece:{vocab_size}: {reason}: choose another size or more text"
        ) from error
    return parse_model(model.getvalue(), "the trained model")
