"""The Trainer's callbacks that record a training: metrics.jsonl, the steps, replies."""

import importlib.metadata
import math
import os
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from neoxkit import files
from neoxkit.data.conversation import Names
from neoxkit.data.questions import Question, asked
from neoxkit.models.generation import reply
from neoxkit.runs import steps
from neoxkit.runs.events import append_event
from neoxkit.runs.folder import ARGUMENTS
from neoxkit.training.arguments import Parsed, zero_stage

REPLY_TOKENS = 32  # the longest reply during training


class Metrics(TrainerCallback):
    """The callback that writes metrics.jsonl, on rank 0 alone."""

    def __init__(
        self, folder: Path, parsed: Parsed, matmul_peak: float, parts: Collection[str] = ()
    ) -> None:
        """`parts`: the names of the held-out set's parts, if it has several."""
        self.folder, self.parsed, self.matmul_peak = folder, parsed, matmul_peak
        self.parts = parts
        self.seconds, self.last = 0.0, time.perf_counter()

    def write(self, event: str, state: Any, **values: Any) -> None:
        if state.is_world_process_zero:
            append_event(self.folder, event, step=state.global_step, **values)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kit, model = self.parsed.kit, kwargs["model"]
        trainer_rows = kwargs["train_dataloader"].dataset
        self.last = time.perf_counter()
        self.write(
            "start",
            state,
            resumed_step=state.global_step,
            planned_steps=state.max_steps,
            epochs=state.num_train_epochs,
            conversations=len(trainer_rows),
            conversations_a_step=args.train_batch_size
            * args.gradient_accumulation_steps
            * args.world_size,
            micro_batch=args.train_batch_size,
            learning_rate=args.learning_rate,
            fitting_rate=self.parsed.fitting_rate,
            dataset=kit.dataset,
            model=kit.model_name_or_path,
            model_type=model.config.model_type,
            num_parameters=sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters()),
            block_size=kit.block_size,
            layout=kit.layout,
            row_tokens=kit.row_tokens,
            precision=kit.precision,
            tf32=bool(args.tf32),
            attention=model.config._attn_implementation,
            optimizer=args.optim if isinstance(args.optim, str) else args.optim.value,
            torch_compile=args.torch_compile,
            vocabulary=model.config.vocab_size,
            max_grad_norm=args.max_grad_norm,
            matmul_peak_tflops=round(self.matmul_peak / 1e12, 4),
            num_ranks=args.world_size,
            exports_best=kit.load_best_model_at_end,
            device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            zero_stage=zero_stage(args),
            notices=self.parsed.notices,
            versions={
                p: importlib.metadata.version(p) for p in ("torch", "transformers", "deepspeed")
            },
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.perf_counter()
        self.seconds += now - self.last
        self.last = now
        kit = self.parsed.kit
        may_save = kit.load_best_model_at_end or kit.early_stopping_patience
        saves = control.should_save or (control.should_evaluate and may_save)
        if saves or state.global_step >= state.max_steps:
            control.should_log = True  # so that a resume counts every step once

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logs = kwargs["logs"]
        if "loss" in logs:
            seconds = max(self.seconds, 1e-9)
            keys = [
                "loss",
                "learning_rate",
                "grad_norm",
                "loss_scale",
                "tokens",
                "trained_tokens",
                "padding_share",
                "memory_gib",
                "memory_gib_by_rank",
            ]
            self.write(
                "train",
                state,
                epoch=round(state.epoch, 4),
                **{k: logs[k] for k in keys if k in logs},
                seconds=round(self.seconds, 3),
                tokens_per_second=round(logs["tokens"] / seconds, 1),
                tflop=round(logs["flop"] / 1e12, 6),
                mfu=round(logs["flop"] / seconds / self.matmul_peak, 4),
            )
            self.seconds = 0.0
        self.last = time.perf_counter()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        metrics = kwargs["metrics"]
        loss = metrics["eval_loss"]
        parts = {name: metrics[f"eval_{name}_loss"] for name in self.parts}
        self.write(
            "eval",
            state,
            epoch=round(state.epoch or 0, 4),
            loss=loss,
            perplexity=math.exp(min(loss, 700)),
            trained_tokens=metrics["eval_trained_tokens"],
            seconds=round(metrics["eval_runtime"], 3),
            **{k: metrics[f"eval_{k}"] for k in ("detectable",) if f"eval_{k}" in metrics},
            **({"parts": parts} if parts else {}),
        )
        self.last = time.perf_counter()

    def on_save(self, *_: Any, **__: Any) -> None:
        self.last = time.perf_counter()


class Steps(TrainerCallback):
    """The callback that records each step's conversations (runs/steps.py), on every rank."""

    def __init__(self, folder: Path, trainer: Any) -> None:
        self.folder, self.trainer = folder, trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        config = args.hf_deepspeed_config.config if args.deepspeed else {}
        start = steps.Attempt(
            resumed=state.global_step,
            ranks=args.world_size,
            threads=os.environ.get("OMP_NUM_THREADS", ""),
            converted="checkpoint" in config,
            arguments=files.read_json(self.folder / ARGUMENTS),
        )
        steps.begin(self.folder, args.process_index, start)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        norm = self.trainer.grad_norm
        finite = norm is not None and math.isfinite(norm)  # in fp16 it may overflow
        taken = self.trainer.take_step()
        steps.append(
            self.folder,
            args.process_index,
            state.global_step,
            taken,
            float(norm) if finite else None,
        )


class Replies(TrainerCallback):
    """The callback that writes replies to the same few questions at every evaluation."""

    def __init__(
        self, folder: Path, questions: Sequence[Question], tokenizer: Any, names: Names
    ) -> None:
        self.folder, self.questions = folder, questions
        self.tokenizer, self.names = tokenizer, names

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        together = is_deepspeed_zero3_enabled()  # every rank holds a part of the weights
        if not self.questions or not (state.is_world_process_zero or together):
            return
        prompts = [question.prompt for question in self.questions]
        answers = reply(
            kwargs["model"], self.tokenizer, prompts, self.names, max_new_tokens=REPLY_TOKENS
        )
        if state.is_world_process_zero:
            told = [
                {"asked": asked(question, self.names), "reply": answer.text, "ended": answer.ended}
                for question, answer in zip(self.questions, answers, strict=True)
            ]
            append_event(self.folder, "replies", step=state.global_step, replies=told)
