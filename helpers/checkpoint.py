"""Load and store trained models: safetensors for the weights, a JSON model card beside them, a hash for both.

A checkpoint is two files with one name: ``NAME.safetensors`` (weights, with the model's configuration in its
header) and ``NAME.json`` (the model card: what it was trained on, how long, how well it does, its SHA-256).
The header also names the model's class; a file without that name holds a `TransformerLM`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_model, save_model
from torch import nn

from helpers.models import ModelConfig, TransformerLM
from helpers.seq2seq import Seq2Seq, Seq2SeqConfig

CHECKPOINTS = Path(__file__).resolve().parent / "checkpoints"
COURSE_MODEL = CHECKPOINTS / "course_model.safetensors"
DATE_READER = CHECKPOINTS / "date_reader.safetensors"
KINDS = {"TransformerLM": (TransformerLM, ModelConfig), "Seq2Seq": (Seq2Seq, Seq2SeqConfig)}


class DamagedCheckpoint(ValueError):
    """The weights on disk are not the ones that the model card describes."""


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save_checkpoint(model: TransformerLM | Seq2Seq, path: Path, card: dict[str, object]) -> None:
    """Write weights and model card; each appears whole or not at all.

    Raises
    ------
    ValueError
        If `load_checkpoint` could not rebuild the model: another class (a subclass, too), or not in float.
    """
    _refuse_what_cannot_be_rebuilt(model)
    part = path.with_suffix(".part")
    header = {"config": json.dumps(model.config.to_dict()), "model": type(model).__name__}
    save_model(model, str(part), metadata=header)
    text = json.dumps(card | {"config": model.config.to_dict(), "sha256": sha256(part)}, indent=2) + "\n"
    part.replace(path)
    card_part = path.with_suffix(".json.part")
    card_part.write_text(text)
    card_part.replace(path.with_suffix(".json"))


def _refuse_what_cannot_be_rebuilt(model: nn.Module) -> None:
    name = type(model).__name__
    build, _ = KINDS.get(name, (None, None))
    if type(model) is not build:
        raise ValueError(
            f"a checkpoint holds a {' or a '.join(KINDS)} of the course's helpers, and this is another class, {name}, "
            "whose code would not be in the file. Copy its weights into one of those (load_state_dict) and save that."
        )
    with torch.device("meta"):  # names and sizes only
        wanted = {key: tensor.shape for key, tensor in build(model.config).state_dict().items()}
    state = model.state_dict()
    if {key: getattr(value, "shape", None) for key, value in state.items()} != wanted or not all(
        value.dtype == torch.float32 for value in state.values()
    ):
        raise ValueError(
            f"a checkpoint holds float32 weights, and those of this {name} are not (int8, or with observers). "
            "Save the float model, or use torch.save(model.state_dict(), path)."
        )


def load_checkpoint(path: Path) -> TransformerLM | Seq2Seq:
    """Rebuild the model of a checkpoint, in eval mode.

    Raises
    ------
    FileNotFoundError
        If the weights or the model card are missing.
    DamagedCheckpoint
        If the file is not the one that the model card describes (cut off, or changed), or holds no such model.
    """
    card = load_card(path)
    cure = "Get the file again (git checkout -- helpers/checkpoints), or train it again (make model, make dates)."
    if not path.is_file():
        raise FileNotFoundError(f"the weights {path.name} are missing in {path.parent.name}/. {cure}")
    if sha256(path) != card.get("sha256"):
        raise DamagedCheckpoint(f"{path.name} is damaged: it is not the file that its model card describes. {cure}")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
        kind = header.get("model", "TransformerLM")
        if kind not in KINDS or "config" not in header:
            raise ValueError(f"its header has no configuration of a {' or a '.join(KINDS)}")
        build, configuration = KINDS[kind]
        model = build(configuration(**json.loads(header["config"])))
        load_model(model, str(path))
    except Exception as error:  # its hash is right, so it was written like this
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(":.")
        raise DamagedCheckpoint(f"{path.name} cannot be read: {reason}. {cure}") from error
    return model.eval()


def load_card(path: Path) -> dict[str, object]:
    """The model card beside the weights: data, steps, seconds, metrics, versions."""
    card = path.with_suffix(".json")
    try:
        content = json.loads(card.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(
            f"the model card {card.name} is missing in {card.parent.name}/. "
            "Get it again: git checkout -- helpers/checkpoints"
        ) from None
    except ValueError as error:
        raise DamagedCheckpoint(
            f"{card.name} is not valid JSON. Get it again: git checkout -- helpers/checkpoints"
        ) from error
    if not isinstance(content, dict):
        raise DamagedCheckpoint(f"{card.name} is no model card. Get it again: git checkout -- helpers/checkpoints")
    return content


def load_course_model() -> TransformerLM:
    """The course's trained language model, in eval mode; its card is ``load_card(COURSE_MODEL)``."""
    return load_checkpoint(COURSE_MODEL)


def load_date_reader() -> Seq2Seq:
    """The trained encoder-decoder of unit 06, in eval mode; its card is ``load_card(DATE_READER)``."""
    return load_checkpoint(DATE_READER)
