"""A `Seq2Seq` and its file: what a file can hold of a model, and the model that another process makes of it.

Three kinds: float32 (safetensors), PyTorch's int8 modules, dynamic or static (a state_dict, read as numbers only), and
`helpers.packed`. Everything that a file would not hold is refused when it is written; everything that is no part of
the model is refused when it is read: each file is written again from what was understood of it, and must be the same.
`helpers.challenge` judges by it.
"""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Iterable

import torch
import torch.ao.nn.quantized as nnq
import torch.ao.nn.quantized.dynamic as nnqd
import torch.ao.quantization as tq
from safetensors.torch import save
from torch import Tensor, nn

from helpers import dates, packed, seq2seq
from helpers.packed import Refused
from helpers.seq2seq import Seq2Seq, Seq2SeqConfig


def written(model: nn.Module, reference: Seq2Seq) -> bytes:
    """The file of a live model, after everything was refused that a file of it would not hold.

    Raises
    ------
    Refused
    """
    if type(model) is not Seq2Seq:
        raise Refused(
            f"{type(model).__name__} is a class that the judge does not know: its Python code is not in the file."
        )
    if model.config != reference.config:
        raise Refused("the entry has another configuration than the reference model: enter a smaller file of that one.")
    skeleton = _skeleton(reference.config, _kind(model), _dynamic(model))
    _same_parts(model, skeleton)
    _nothing_extra(model, skeleton)
    return _file(model)


def _file(model: Seq2Seq) -> bytes:
    kind, dynamic = _kind(model), _dynamic(model)
    if kind == "float":
        return float_file(model)
    stream = io.BytesIO()
    about = {"config": model.config.to_dict(), "kind": kind, "dynamic": dynamic}
    torch.save({"about": json.dumps(about), "state": model.state_dict()}, stream)
    return stream.getvalue()


def rebuilt(content: bytes, config: Seq2SeqConfig) -> tuple[Seq2Seq, str]:
    """The model of a file, made with the course's own classes, and the file's kind.

    Raises
    ------
    Refused
    """
    if content[:4] == b"PK\x03\x04":
        return _rebuilt_int8(content, config)
    if content[:1] == b"\x80" and content[8:9] != b"{":
        raise Refused("the file is a pickle, which is a program: the judge runs no code of an entry.")
    if "packed" in packed.metadata(content):
        return packed.unpack(content, config), "packed"
    if packed.read_header(content, "float") != config.to_dict():
        raise Refused("the file's configuration is another one than the reference model's.")
    model = packed.blank(config)
    tensors = packed.read_tensors(content)
    _load(model, tensors)
    if float_file(model) != content:
        raise Refused("the file holds something that is neither weights nor their description.")
    return model, "float"


def float_file(model: Seq2Seq) -> bytes:
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    return save(state, {"float": json.dumps(model.config.to_dict())})


def _rebuilt_int8(content: bytes, config: Seq2SeqConfig) -> tuple[Seq2Seq, str]:
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        records = archive.infolist()
        plain = all(record.compress_type == zipfile.ZIP_STORED for record in records)
        whole = plain and sum(record.file_size for record in records) <= len(content) and not archive.testzip()
    except Exception:
        plain, whole = True, False
    if not plain:
        raise Refused(
            "the file is compressed: the judge reads what torch.save writes. To save bytes, use challenge.pack."
        )
    if not whole:
        raise Refused("the file is damaged: it cannot be read as what torch.save writes.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch.load says of quantized storage
            stored = torch.load(io.BytesIO(content), weights_only=True)
    except Exception:
        raise Refused(
            "the file is damaged, or holds pickled Python code: the judge reads numbers only (weights_only=True)."
        ) from None
    if not isinstance(stored, dict) or set(stored) != {"about", "state"} or not isinstance(stored["state"], dict):
        raise Refused("the file holds something else than the state of a model: submit the model itself, or pack it.")
    try:
        about = json.loads(stored["about"])
        kind, dynamic = str(about["kind"]), [str(name) for name in about["dynamic"]]
    except (KeyError, TypeError, ValueError, RecursionError):
        raise Refused("the file's description of the model cannot be read.") from None
    if about.get("config") != config.to_dict():
        raise Refused("the file's configuration is another one than the reference model's.")
    if set(about) != {"config", "kind", "dynamic"}:
        raise Refused("the file holds something that is neither weights nor their description.")
    if kind not in ("dynamic", "static"):
        raise Refused(f"the judge knows no int8 model of the kind {kind!r}.")
    model = _skeleton(config, kind, dynamic)
    _load(model, stored["state"])
    if _file(model) != content:
        raise Refused(
            "the file holds something that is neither weights nor their description, or was written with another "
            f"engine than {torch.backends.quantized.engine!r}."
        )
    return model, f"{kind} int8"


def _kind(model: Seq2Seq) -> str:
    kinds = {type(part) for part in model.modules()}
    if nnq.Linear in kinds or nnq.Embedding in kinds:
        return "static"
    return "dynamic" if nnqd.Linear in kinds else "float"


def _dynamic(model: nn.Module) -> list[str]:
    return [name for name, part in model.named_modules() if type(part) is nnqd.Linear]


def _skeleton(config: Seq2SeqConfig, kind: str, dynamic: Iterable[str] = ()) -> Seq2Seq:
    """A model of this kind with numbers that mean nothing yet."""
    model = packed.blank(config)
    if kind == "static":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # observers that have seen nothing; their scales are overwritten
            return tq.convert(seq2seq.prepare(model))
    if kind == "dynamic":
        linears = {name for name, part in model.named_modules() if type(part) is nn.Linear}
        if strange := sorted(set(dynamic) - linears):
            raise Refused(f"the model has no Linear layer {strange[0]!r} that could be dynamically quantized.")
        return tq.quantize_dynamic(model, dict.fromkeys(dynamic, tq.default_dynamic_qconfig), dtype=torch.qint8)
    return model


def _load(model: Seq2Seq, state: dict[str, object]) -> None:
    """Copy `state` into `model`, if it has exactly the model's names, types and shapes."""
    wanted = _leaves(model.state_dict())
    have = _leaves(state)
    for name in [*have, *wanted]:
        if name not in wanted:
            raise Refused(f"the file holds {name!r}{_size(have[name])}, which is no part of the model.")
        if name not in have:
            raise Refused(f"the file lacks {name!r}.")
        if _described(have[name]) != _described(wanted[name]):
            raise Refused(f"{name} is {_described(have[name])} in the file: the model has {_described(wanted[name])}.")
        if isinstance(have[name], Tensor):
            _sound(name, have[name])
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError):
        raise Refused("the file's numbers do not fit into the model.") from None


def _sound(name: str, tensor: Tensor) -> None:
    """Numbers that a kernel can compute with: finite, scales positive, zero points among the codes."""
    value = tensor.dequantize()
    if value.is_floating_point() and not value.isfinite().all():
        raise Refused(f"{name} holds nan or inf.")
    if tensor.is_quantized:
        by_row = tensor.qscheme() not in (torch.per_tensor_affine, torch.per_tensor_symmetric)
        if by_row and tensor.q_per_channel_axis() != 0:
            raise Refused(f"{name} has a scale for each column: the kernels take one for each row.")
        scales = tensor.q_per_channel_scales() if by_row else torch.tensor(tensor.q_scale())
    else:
        scales = tensor if name.endswith("scale") else torch.ones(1)
    if not (scales > 0).all():
        raise Refused(f"{name} has a scale that is zero or negative: it multiplies everything there.")
    if name.endswith("zero_point") and not ((tensor >= 0) & (tensor <= 255)).all():
        raise Refused(f"{name} is no code of 8 bits.")


def _leaves(state: dict[str, object]) -> dict[str, object]:
    """The entries of a state_dict; packed parameters, which are tuples of weight and bias, one by one."""
    flat: dict[str, object] = {}
    for name, value in state.items():
        if isinstance(value, tuple):
            flat |= {f"{name}.{i}": part for i, part in enumerate(value)}
        else:
            flat[str(name)] = value
    return flat


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    if value.is_nested or value.layout != torch.strided or value.device.type != "cpu":
        return "a tensor without plain numbers"
    return f"{tuple(value.shape)} {value.dtype}"


def _size(value: object) -> str:
    plain = isinstance(value, Tensor) and not value.is_nested
    return f" ({value.numel() * value.element_size():,} bytes)" if plain else ""


def _same_parts(model: nn.Module, skeleton: nn.Module) -> None:
    """No module of another class, no hook, no method of its own: none of that would be in the file."""
    parts = dict(skeleton.named_modules())
    for name, part in model.named_modules():
        where = name or "the model"
        if type(part) is not type(parts.get(name)):
            wanted = type(parts[name]).__name__ if name in parts else "nothing"
            raise Refused(
                f"{where} is a {type(part).__module__}.{type(part).__name__}, and the judge's model has {wanted} "
                "there: the file would not hold its Python code."
            )
        if part._forward_hooks or part._forward_pre_hooks:
            raise Refused(f"{where} has hooks, which run beside the model: a file does not hold them.")
        own = [key for key, value in vars(part).items() if callable(getattr(type(part), key, None)) and callable(value)]
        if own:
            raise Refused(f"{where} has a {own[0]} of its own in place of its class's: a file does not hold that.")
    if missing := sorted(set(parts) - set(dict(model.named_modules()))):
        raise Refused(f"{missing[0]} is missing in the entry.")


def _nothing_extra(model: nn.Module, skeleton: nn.Module) -> None:
    """The model's parameters and buffers, saved or not, each with numbers of its own, and none beside them."""
    known, have = _tensors(skeleton), _tensors(model)
    for name in known:
        if name not in have:
            raise Refused(f"{name} is missing in the entry.")
        if have[name].device.type != "cpu":
            raise Refused(f"{name} is on the device {have[name].device.type!r}: a file holds numbers from the CPU.")
    if len({id(tensor) for tensor in have.values()}) < len(have):
        raise Refused("two parts of the entry share one tensor: in the judge's model each has its own.")
    for name, tensor in have.items():
        if name not in known:
            raise Refused(
                f"{name} ({tensor.numel() * tensor.element_size():,} bytes of {tensor.dtype}) is hidden in the entry: "
                "the judge's model has no such tensor."
            )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])


@torch.no_grad()
def same_answers(entry: nn.Module, model: nn.Module) -> None:
    """Does the model from the file compute what the submitted one does? Asked with dates of the training split."""
    source, target, _ = dates.pairs("training", 32, seed=0)
    shown = seq2seq.shifted(target)
    was_training = entry.training
    try:
        same = torch.allclose(entry.eval()(source, shown), model(source, shown), atol=1e-3)
    finally:
        entry.train(was_training)
    if not same:
        raise Refused("rebuilt from its file, the entry computes something else: part of it is not in the file.")
