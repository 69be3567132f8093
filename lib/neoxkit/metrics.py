"""The Trainer's callbacks that write metrics.jsonl: how it goes, and what the model answers."""

import importlib.metadata
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from neoxkit.arguments import Parsed, zero_stage
from neoxkit.data.conversation import Names
from neoxkit.data.questions import Question, asked
from neoxkit.models import flops
from neoxkit.models.generation import reply
from neoxkit.runs.events import append_event

REPLY_TOKENS = 32  # longest reply during training


class Metrics(TrainerCallback):
    """Writes metrics.jsonl (rank 0 alone)."""

    def __init__(self, folder: Path, parsed: Parsed, matmul_peak: float) -> None:
        self.folder, self.parsed, self.matmul_peak = folder, parsed, matmul_peak
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
            model_gib=round(flops.memory_gib(), 3),  # with gradients' and optimizer's places
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
        if control.should_save or state.global_step >= state.max_steps:
            control.should_log = True  # so that no step is counted twice, or not at all, on resume

    def on_log(self, args: Any, state: Any, control: Any, logs: dict, **kwargs: Any) -> None:
        if "loss" in logs:
            seconds = max(self.seconds, 1e-9)
            keys = [
                "loss",
                "learning_rate",
                "grad_norm",
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

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict, **kwargs: Any
    ) -> None:
        loss = metrics["eval_loss"]
        self.write(
            "eval",
            state,
            epoch=round(state.epoch or 0, 4),
            loss=loss,
            perplexity=math.exp(min(loss, 700)),
            trained_tokens=metrics["eval_trained_tokens"],
            seconds=round(metrics["eval_runtime"], 3),
        )
        self.last = time.perf_counter()

    def on_save(self, *_: Any, **__: Any) -> None:
        self.last = time.perf_counter()


class Replies(TrainerCallback):
    """Writes what the model answers to the same few questions at every evaluation."""

    def __init__(
        self, folder: Path, questions: Sequence[Question], tokenizer: Any, names: Names
    ) -> None:
        self.folder, self.questions = folder, questions
        self.tokenizer, self.names = tokenizer, names

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        together = is_deepspeed_zero3_enabled()  # every rank holds a part of the weights
        if not self.questions or not (state.is_world_process_zero or together):
            return
        prompts = [question.prompt for question in self.questions]
        answers = reply(model, self.tokenizer, prompts, self.names, max_new_tokens=REPLY_TOKENS)
        if state.is_world_process_zero:
            told = [
                {"asked": asked(question, self.names), "reply": answer.text, "ended": answer.ended}
                for question, answer in zip(self.questions, answers, strict=True)
            ]
            append_event(self.folder, "replies", step=state.global_step, replies=told)
