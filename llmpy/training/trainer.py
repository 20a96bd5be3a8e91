"""The training loop: forward and backward, AdamW, log, validation, samples, and checkpoints that resume bit for bit.

trainer = Trainer(TrainConfig(data="my-book.txt", steps=500), "runs/my-book")
trainer.train()
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import numpy as np

from llmpy.errors import UserError
from llmpy.inference.engine import Engine
from llmpy.training import checkpoint
from llmpy.training.config import TrainConfig
from llmpy.training.config_file import to_toml
from llmpy.training.console import Screen
from llmpy.training.lr_schedule import learning_rate
from llmpy.training.metrics import OutlierDetector, Throughput, flops_per_token
from llmpy.training.optimizer import AdamW, clip_scale
from llmpy.training.run_log import RunLog, cut_logs, step_line
from llmpy.training.setup import assemble, resumed_config
from llmpy.utils.progress_bar import amount
from llmpy.utils.rng import hash64

SAMPLE_TEMPERATURE = 0.75


@dataclass(frozen=True)
class Result:
    """The result of `train`: losses in nats (None: not computed), and the reason of the end."""

    step: int
    train_loss: float | None
    val_loss: float | None
    seconds: float
    reason: Literal["finished", "stop_after", "signal"]


class Trainer:
    """A model in training, with its data, its optimizer and its records.

    `out` is the run's folder (None: nothing is written). `.config` has every setting that `config` left open.
    Raises UserError for whatever does not fit, before anything is written.
    """

    step: int  # steps done
    seconds: float  # spent in these steps
    train_loss: float | None
    val_loss: float | None
    evaluated: bool  # whether the validation and the sample that are due before the next step are done
    log: RunLog
    _batch: tuple[np.ndarray, np.ndarray] | None

    def train(self) -> Result:
        """Trains until the last step, `stop_after`, or a signal, and saves a checkpoint. May be called again."""
        began_at = self.step
        with RunLog(self.out) as self.log:
            with self.screen, _Signals() as signals:
                while True:
                    interrupted = signals.received
                    finished = self.step == self.config.steps
                    stopping = finished or interrupted or (self.stop_after is not None and self.step >= self.stop_after)
                    if not (interrupted or self.evaluated):
                        self._evaluate(finished)
                    if stopping or self._is_due(self.config.checkpoint_every):
                        self.save()
                    if stopping:
                        break
                    self.train_step()
            if finished and self.step > began_at:
                self._sample(stream=True)
        reason: Any = "finished" if finished else "signal" if interrupted else "stop_after"
        return Result(self.step, self.train_loss, self.val_loss, self.seconds, reason)

    def train_step(self) -> None:
        """Trains a step: accumulates gradients of `micro_steps` batches, clips, updates. Raises UserError at NaN."""
        config, model, start = self.config, self.model, time.perf_counter()
        if config.overfit:
            self.train_data.reset()
        losses = []
        for micro in range(config.micro_steps):
            x, y = self._batch = self.train_data.next_batch()
            key = hash64(config.seed, self.step, micro)
            losses.append(model.loss_and_gradients(x, y, config.micro_steps, micro > 0, key))
        norm = self.optimizer.gradient_norm()
        loss = sum(float(loss) / config.micro_steps for loss in losses)  # a GPU has finished: the norm is known
        self._refuse_nan("loss", loss)
        self._refuse_nan("norm of the gradient", norm)

        loss_z, norm_z = self.loss_outliers.update(loss), self.norm_outliers.update(norm)
        skipped = loss_z > config.skip_loss_z > 0 or norm_z > config.skip_norm_z > 0
        lr = self._learning_rate()
        if not skipped:
            self.optimizer.update(self.step + 1, lr, clip_scale(norm, config.clip))
        else:
            model.pack_weights(self.step + 1)  # a resumed run rounds them the same way
        seconds = time.perf_counter() - start
        self._record(loss, loss_z, norm, norm_z, lr, skipped, seconds)
        self.train_loss, self.evaluated = loss, False
        self.seconds += seconds
        self.step += 1

    def validate(self) -> float | None:
        """Returns the mean loss of the validation batches (always the same), or None without validation data."""
        if self.val_data is None:
            return None
        B, T, few = self.config.batch_size, self.config.sequence_length, self.val_data.B
        batches = self.val_data.batches_per_epoch
        if self.config.eval_batches != -1:
            batches = min(batches, self.config.eval_batches)
        self.val_data.reset()
        total = 0.0
        x, y = np.zeros((B, T), np.int32), np.full((B, T), -1, np.int32)
        for _ in range(batches):
            x[:few], y[:few] = self.val_data.next_batch()  # rows beyond the validation text have no targets
            total += self.model.loss(x, y) * B / few
        return total / batches

    def sample(self, step: int = 0) -> Iterator[str]:
        """Yields a sample of the model in pieces; the seed depends on `step`."""
        prompt = self.config.sample_prompt
        yield prompt
        if self.engine is not None:
            assert self.engine.tokenizer is not None
            if not prompt and self.engine.tokenizer.end_of_text is None:
                prompt = "\n"
            yield from self.engine.stream(
                prompt, self.config.sample_tokens, SAMPLE_TEMPERATURE, seed=self.config.seed + step
            )

    def save(self) -> Path | None:
        """Saves a checkpoint unless this step has one, then removes old ones. Returns its path (None without `out`)."""
        if self.out is None:
            return None
        path = checkpoint.step_folder(self.out, self.step)
        if checkpoint.newest_step(self.out) != path:
            if self._batch is not None:  # a model that no longer works must not take the place of one that does
                self._refuse_nan("loss", self.model.loss(*self._batch))
            state = {
                "seconds": self.seconds,
                "evaluated": self.evaluated,
                "losses": {"train": self.train_loss, "val": self.val_loss},
                "outliers": {"loss": self.loss_outliers.window, "norm": self.norm_outliers.window},
                "data": self._fingerprint,
                "loader": self.train_data.state(),
            }
            end_of_text = self.tokenizer.end_of_text if self.tokenizer else None
            checkpoint.save(self.out, self.step, self.model, state, end_of_text)
        checkpoint.prune(self.out, self.config.keep, self.config.major_every)
        return path

    # ---- parts of a step ---------------------------------------------------------------------------------------------

    def _is_due(self, every: int | None) -> bool:
        """Returns whether `step` is a positive multiple of `every` (0 and None: never)."""
        return every is not None and every > 0 and self.step > 0 and self.step % every == 0

    def _learning_rate(self) -> float:
        c = self.config
        assert c.lr is not None  # filled in by `assemble`
        assert c.warmup is not None
        return learning_rate(self.step, c.steps, c.lr, c.schedule, c.warmup, c.final_lr_fraction)

    def _evaluate(self, finished: bool) -> None:
        """Validates and samples if one is due before the next step."""
        every = self.config.eval_every
        if every and (self._is_due(every) or self.step == 0 or finished) and (loss := self.validate()) is not None:
            self._refuse_nan("validation loss", loss)
            self.val_loss = loss
            self.log.validation(self.step, loss)
            self.screen.line(f"val loss {loss:.6f}")
        if self._is_due(self.config.sample_every) and not finished:
            self._sample(stream=False)
        self.evaluated = True

    def _sample(self, stream: bool) -> None:
        if self.engine is None:
            return
        if not stream:
            text = "".join(self.sample(self.step))
            self.screen.line(f"---\n{text}\n---")
        else:
            text = ""
            self.screen.line("---")
            for piece in self.sample(self.step):
                text += piece
                self.screen.piece(piece)
            self.screen.line("\n---")
        self.log.sample(self.step, text)

    def _record(
        self, loss: float, loss_z: float, norm: float, norm_z: float, lr: float, skipped: bool, seconds: float
    ) -> None:
        c = self.config
        tokens_per_s = self.throughput.update(c.step_tokens, seconds)
        gflops = c.step_tokens / seconds * flops_per_token(self.model.config, c.sequence_length) / 1e9
        mfu = gflops * 1e9 / self._peak_flops if self._peak_flops else None
        more = {"loss_z": loss_z, "norm_z": norm_z, "skipped": skipped, "seconds": seconds}
        more |= {"tokens": (self.step + 1) * c.step_tokens, "tokens_per_s": tokens_per_s, "gflops": gflops}
        if mfu is not None:
            more |= {"mfu": mfu}
        self.log.train(self.step, loss, lr, norm, **more)
        line = step_line(self.step, c.steps, loss, loss_z, norm, norm_z, lr, seconds, gflops, tokens_per_s, mfu)
        self.screen.step(self.step, line, loss, tokens_per_s, c.step_tokens)
        if skipped:
            self.screen.note(f"step {self.step + 1} is skipped: its loss or gradient is an outlier")

    def _refuse_nan(self, what: str, value: float) -> None:
        if math.isfinite(value):
            return
        last = checkpoint.newest_step(self.out) if self.out is not None else None
        way = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
        raise UserError(
            f"the {what} became {value} at step {self.step + 1}: {way}; lower --lr (it is {self.config.lr:g})"
        )

    # ---- start and resume --------------------------------------------------------------------------------------------

    def __init__(
        self,
        config: TrainConfig,
        out: str | Path | None = None,
        *,
        overwrite: bool = False,
        stop_after: int | None = None,
        quiet: bool = False,
        _resume: bool = False,
    ) -> None:
        self.out = Path(out) if out is not None else None
        self.stop_after = stop_after
        newest = state = None
        if self.out is not None and _resume and (newest := checkpoint.newest_step(self.out)) is not None:
            state = checkpoint.verify(newest)
        elif self.out is not None and not _resume:
            checkpoint.check_free(self.out, overwrite)

        parts = assemble(config, newest)
        self.config, self.model, self.tokenizer = parts.config, parts.model, parts.tokenizer
        self.train_data, self.val_data, self._fingerprint = parts.train, parts.val, parts.fingerprint
        self.optimizer = AdamW.of(self.model, self.config.beta1, self.config.beta2, self.config.weight_decay)
        self._peak_flops = self.model.kernels.peak_flops(self.config.precision)
        self.engine = self._take_engine()

        self.step, self.seconds = 0, 0.0
        self.train_loss = self.val_loss = None
        self.evaluated = False
        self.loss_outliers, self.norm_outliers = OutlierDetector(), OutlierDetector()
        self.throughput = Throughput()
        self._batch = None
        if newest is not None and state is not None:
            self._restore(newest, state)
        if self.out is not None:
            checkpoint.check_space(self.out, self.model)
            if _resume:
                checkpoint.reopen_run(self.out, to_toml(self.config))
                cut_logs(self.out, self.step, self.evaluated)
            else:
                tokenizer = self.tokenizer.to_json() if self.tokenizer else None
                checkpoint.start_run(self.out, to_toml(self.config), tokenizer, overwrite, parts.chat_template)
        self.screen = Screen(self.config.steps, self.config.log_every, quiet)
        self.log = RunLog(None)

    @classmethod
    def resume(
        cls,
        out: str | Path,
        changes: Mapping[str, Any] | None = None,
        *,
        stop_after: int | None = None,
        quiet: bool = False,
    ) -> Trainer:
        """The run in `out`, at its newest checkpoint (at its beginning where it has none), with some settings changed.

        Raises UserError where there is no run, a file of it is damaged, or a change would make it another run.
        """
        config = resumed_config(Path(out), changes or {})
        return cls(config, out, stop_after=stop_after, quiet=quiet, _resume=True)

    def _take_engine(self) -> Engine | None:
        """Returns the engine that writes samples; allocates now, so that memory stays constant during training."""
        if self.config.sample_every == 0 or self.tokenizer is None:
            return None
        engine = Engine(self.model, self.config.backend, self.tokenizer)
        next(engine.generate([0], 1))
        return engine

    def _restore(self, newest: Path, state: dict[str, Any]) -> None:
        """Restores model, data position and records from a checkpoint."""
        if state["data"] != self._fingerprint:
            raise UserError(
                f"{self.config.data} is not what the run in {self.out} began with: restore it, or start another run"
            )
        if state["step"] > self.config.steps:
            raise UserError(
                f"the run in {self.out} has done {state['step']} steps: --steps {self.config.steps} lies behind it"
            )
        checkpoint.load(newest, self.model)
        self.model.pack_weights(state["step"])
        self.train_data.set_state(state["loader"])
        self.step, self.seconds, self.evaluated = state["step"], state["seconds"], state["evaluated"]
        self.train_loss, self.val_loss = state["losses"]["train"], state["losses"]["val"]
        self.loss_outliers.window, self.norm_outliers.window = state["outliers"]["loss"], state["outliers"]["norm"]

    def describe(self) -> str:
        """Returns a few lines about the data, the model, and the training."""
        c, shape = self.config, self.model.config
        val = f", {self.val_data.tokens:,} to validate on" if self.val_data else ", none to validate on"
        name = f" ({self.tokenizer.name})" if self.tokenizer else "; GPT-2's vocabulary cannot be had now: no samples"
        size = amount(self.model.parameters.flat.size)
        lines = [
            f"data: {c.data}, {self.train_data.tokens:,} tokens to train on{val}{name}",
            f"model: {size} parameters; {shape.layers} layers, {shape.heads} heads, {shape.channels} channels, "
            f"{shape.vocab_size} tokens",
            self.model.memory.report(),
            f"training: {c.steps} steps of {c.step_tokens:,} tokens in {c.precision}, learning rate {c.lr:g} "
            f"({c.schedule})",
        ]  # fmt: skip
        if device := self.model.kernels.device_name():
            peak = self._peak_flops
            told = f"at most {peak / 1e12:.0f} TFLOP/s in {c.precision}" if peak else "an unknown GPU, so without MFU"
            lines.append(f"device: {device}, {told}")
        return "\n".join(lines)


class _Signals:
    """Records Ctrl-C and SIGTERM, so that the step is finished and saved; the second signal stops at once."""

    NAMES = ("SIGINT", "SIGTERM")

    def __init__(self) -> None:
        self.received = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows none
            for name in self.NAMES:
                number = getattr(signal, name)
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = True
        # Not by print: it may be what was interrupted.
        os.write(2, b"\nstopping after this step (once more: at once)\n")
