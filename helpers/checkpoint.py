"""Load and store trained models: safetensors for the weights, a JSON model card beside them, a hash for both.

A checkpoint is two files with one name: ``NAME.safetensors`` (weights, with the model's configuration in its
header) and ``NAME.json`` (the model card: what it was trained on, how long, how well it does, its SHA-256).
The header also names the model's class; a file without that name holds a `TransformerLM`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model

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
    """Write weights and model card; each appears whole or not at all."""
    part = path.with_suffix(".part")
    header = {"config": json.dumps(model.config.to_dict()), "model": type(model).__name__}
    save_model(model, str(part), metadata=header)
    text = json.dumps(card | {"config": model.config.to_dict(), "sha256": sha256(part)}, indent=2) + "\n"
    part.replace(path)
    card_part = path.with_suffix(".json.part")
    card_part.write_text(text)
    card_part.replace(path.with_suffix(".json"))


def load_checkpoint(path: Path) -> TransformerLM | Seq2Seq:
    """Rebuild the model of a checkpoint, in eval mode.

    Raises
    ------
    FileNotFoundError
        If the weights or the model card are missing.
    DamagedCheckpoint
        If the file is not the one that the model card describes (cut off, or changed).
    """
    card = load_card(path)
    cure = "Get the file again (git checkout -- helpers/checkpoints), or train it again (make model, make dates)."
    if not path.is_file():
        raise FileNotFoundError(f"the weights {path.name} are missing in {path.parent.name}/. {cure}")
    if sha256(path) != card["sha256"]:
        raise DamagedCheckpoint(f"{path.name} is damaged: it is not the file that its model card describes. {cure}")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata()
        build, configuration = KINDS[header.get("model", "TransformerLM")]
        model = build(configuration(**json.loads(header["config"])))
    except (SafetensorError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"{path.name} cannot be read: {error}. {cure}") from error
    load_model(model, str(path))
    return model.eval()


def load_card(path: Path) -> dict[str, object]:
    """The model card beside the weights: data, steps, seconds, metrics, versions."""
    card = path.with_suffix(".json")
    try:
        return json.loads(card.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(
            f"the model card {card.name} is missing in {card.parent.name}/. "
            "Get it again: git checkout -- helpers/checkpoints"
        ) from None
    except ValueError as error:
        raise DamagedCheckpoint(
            f"{card.name} is not valid JSON. Get it again: git checkout -- helpers/checkpoints"
        ) from error


def load_course_model() -> TransformerLM:
    """The course's trained language model, in eval mode; its card is ``load_card(COURSE_MODEL)``."""
    return load_checkpoint(COURSE_MODEL)


def load_date_reader() -> Seq2Seq:
    """The trained encoder-decoder of unit 06, in eval mode; its card is ``load_card(DATE_READER)``."""
    return load_checkpoint(DATE_READER)
