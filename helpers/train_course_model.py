"""Train the course model: ``make model``. Seeded, resumable (run it again after an interruption), offline.

Optimizer: Muon for the matrices inside the blocks, AdamW for embedding, norms and biases; on this little text it
reaches a given loss in about half the steps of AdamW alone. Dropout is added from outside by hooks, so that the
model itself stays free of a part that does nothing after training.

Reference: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from helpers import baselines, data, metrics
from helpers.checkpoint import COURSE_MODEL, save_checkpoint
from helpers.models import ModelConfig, TransformerLM

RESUME_FOLDER = Path(__file__).resolve().parent.parent / ".training"
BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY, DROPOUT = 16, 3e-3, 0.1, 0.1
WARMUP_STEPS, DECAY_SHARE, SAVE_EVERY = 100, 0.5, 250


def add_dropout(model: TransformerLM, probability: float) -> list[torch.utils.hooks.RemovableHandle]:
    """Dropout on what each attention and feed-forward part writes into the residual stream."""

    def drop(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return F.dropout(output, probability, training=module.training)

    return [part.register_forward_hook(drop) for block in model.blocks for part in (block.attention, block.ffn)]


def optimizers(model: TransformerLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for everything else."""
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    inside = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in inside]
    return [
        torch.optim.Muon(matrices, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=LEARNING_RATE, weight_decay=0.0, betas=(0.9, 0.95)),
    ]


def learning_rate(step: int, steps: int) -> float:
    """Warm up, stay, then fall linearly to zero over the last part of the run."""
    return LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS, (steps - step) / (DECAY_SHARE * steps))


def sliding_bits_per_byte(model: TransformerLM, text: bytes, fresh: int = 128) -> float:
    """Bits per byte of a text of which each byte is scored once, with at least ``context - fresh`` bytes before it."""
    context = model.config.context
    ids = data.encode(text)
    starts = range(0, len(ids) - context, fresh)  # a rest of fewer than `fresh` bytes at the end is left out
    total = metrics.next_byte_bits(model, ids[None, : context + 1]).sum()
    count = context
    for chunk in tqdm(torch.tensor(list(starts)[1:]).split(16), desc="evaluating", leave=False, disable=None):
        rows = ids[chunk[:, None] + torch.arange(context + 1)]  # (rows, context + 1)
        bits = metrics.next_byte_bits(model, rows)[:, -fresh:]
        total, count = total + bits.sum(), count + bits.numel()
    return float(total / count)


def train(steps: int, config: ModelConfig, seed: int, resume: Path) -> tuple[TransformerLM, float]:
    """Train for `steps` steps, from the last saved state if there is one; returns the model and the seconds it took."""
    torch.manual_seed(seed)
    model = TransformerLM(config)
    add_dropout(model, DROPOUT)
    opts = optimizers(model)
    generator = torch.Generator().manual_seed(seed)
    step, seconds = 0, 0.0
    if resume.is_file():
        state = torch.load(resume, weights_only=True)
        if (state["steps"], state["seed"]) != (steps, seed):
            raise SystemExit(
                f"{resume} belongs to a run of {state['steps']} steps with seed {state['seed']}: finish that one, or "
                "delete the file to start anew."
            )
        model.load_state_dict(state["model"])
        for opt, saved in zip(opts, state["optimizers"], strict=True):
            opt.load_state_dict(saved)
        generator.set_state(state["generator"])
        torch.set_rng_state(state["dropout_rng"])
        step, seconds = state["step"], state["seconds"]
    batches = data.random_batches(data.encode(data.split_text("training")), model.config.context, BATCH_SIZE, generator)
    validation = data.windows("validation", 16)
    model.train()
    bar = tqdm(total=steps, initial=step, desc="training", unit="step")
    started = time.perf_counter() - seconds
    smooth = None
    while step < steps:
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = learning_rate(step, steps)
        bits = train_step(model, opts, batches)
        smooth = bits if smooth is None else 0.98 * smooth + 0.02 * bits
        step += 1
        bar.update()
        if step % SAVE_EVERY == 0 or step == steps:
            validated = metrics.bits_per_byte(model.eval(), [validation])
            model.train()
            bar.set_postfix(training=f"{smooth:.3f}", validation=f"{validated:.3f}")
            seconds = time.perf_counter() - started
            state = {
                "steps": steps,
                "seed": seed,
                "step": step,
                "seconds": seconds,
                "model": model.state_dict(),
                "optimizers": [opt.state_dict() for opt in opts],
                "generator": generator.get_state(),
                "dropout_rng": torch.get_rng_state(),
            }
            save_state(resume, state)
    bar.close()
    return model.eval(), seconds


def train_step(
    model: TransformerLM, opts: list[torch.optim.Optimizer], batches: Iterator[tuple[Tensor, Tensor]]
) -> float:
    """One step on one batch; returns the batch's bits per byte before the step."""
    inputs, targets = next(batches)
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    for opt in opts:
        opt.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for opt in opts:
        opt.step()
    return loss.item() / math.log(2)


def save_state(path: Path, state: dict[str, object]) -> None:
    """Write all that an interrupted run needs to go on, whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=COURSE_MODEL)
    arguments = parser.parse_args()
    resume = RESUME_FOLDER / f"{arguments.output.stem}.pt"
    model, seconds = train(arguments.steps, ModelConfig(), arguments.seed, resume)
    training, held_out = data.split_text("training"), data.split_text("held_out")
    card = {
        "what": "byte-level, pre-LN, decoder-only Transformer of the course",
        "data": "pydoc_data.topics and standard-library docstrings of the Python below",
        "training_bytes": len(training),
        "held_out_bytes": len(held_out),
        "steps": arguments.steps,
        "bytes_per_step": BATCH_SIZE * model.config.context,
        "wall_seconds": round(seconds),
        "seed": arguments.seed,
        "held_out_bits_per_byte": round(sliding_bits_per_byte(model, held_out), 4),
        "held_out_baselines_bits_per_byte": {
            "unigram": round(baselines.ngram_bits_per_byte(training, held_out, 1), 3),
            "bigram": round(baselines.ngram_bits_per_byte(training, held_out, 2), 3),
            "trigram": round(baselines.ngram_bits_per_byte(training, held_out, 3), 3),
            "lzma": round(baselines.lzma_bits_per_byte(held_out), 3),
            "lzma primed with the training text": round(baselines.lzma_bits_per_byte(held_out, training), 3),
        },
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }
    save_checkpoint(model, arguments.output, card)
    resume.unlink()
    print(f"{arguments.output.name}: {card['held_out_bits_per_byte']} bits per byte on held-out documents.")


if __name__ == "__main__":
    main()
