"""A `Seq2Seq` in a file of really packed integers: codes of 2 to 8 bits without gaps, scales, zero points, the rest.

The file is safetensors with at most four tensors, each the concatenation over all matrices in the model's order:

    codes        uint8     the codes of a matrix, least significant bit first, filled up to a whole byte
    scales       float16 or float32, one a group
    zero_points  uint8     one a group, of the matrices that are not symmetric
    rest         float32   every parameter that the plan does not name

Its header has the configuration, the plan (matrix -> bits, group, symmetric) and a SHA-256 of all of that. Whoever
reads the file writes it again from what was understood, and refuses it if a single byte differs: so there is no place
for anything else. Unit 06 uses it; `helpers.frontier` has the plans, `helpers.rounding` the grids.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from helpers.frontier import Plan, Scheme, matrices
from helpers.seq2seq import Seq2Seq, Seq2SeqConfig

MIN_GROUP = 16  # weights that share a scale, at least: below that, scales are floats in disguise
SCALES = {"float16": torch.float16, "float32": torch.float32}
LARGEST = {"n_layers": 100, "source_length": 10_000, "target_length": 10_000}  # of a configuration from a file
DTYPES = {"codes": torch.uint8, "zero_points": torch.uint8, "rest": torch.float32}


class Refused(ValueError):
    """An artefact that is not what it says; the text is one sentence for whoever made it."""


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Codes from 0 to ``2**bits - 1``, any shape, without gaps: uint8, (ceil(count * bits / 8),)."""
    each = (codes.reshape(-1, 1).int() >> torch.arange(bits)) & 1  # (count, bits), least significant first
    stream = torch.cat([each.flatten(), torch.zeros(-each.numel() % 8, dtype=each.dtype)])
    return (stream.reshape(-1, 8) << torch.arange(8)).sum(dim=1).to(torch.uint8)


def unpack_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """The inverse: `count` codes, int32, (count,)."""
    stream = ((packed.reshape(-1, 1).int() >> torch.arange(8)) & 1).flatten()[: count * bits]
    return (stream.reshape(count, bits) << torch.arange(bits)).sum(dim=1).int()


@torch.no_grad()
def pack(model: Seq2Seq, plan: Plan, scales: str = "float16") -> bytes:
    """The packed artefact of a float `model`; what `plan` does not name stays float32.

    Parameters
    ----------
    model : Seq2Seq
        Float; is not changed.
    plan : mapping of str to Scheme
        Name of a Linear or Embedding -> bits (2 to 8), group (at least 16 weights, "channel" or None), symmetric.
    scales : "float16" or "float32"

    Raises
    ------
    Refused
        If the plan, the kind of scales or a weight cannot be stored.
    """
    _check_model(model)
    _check_plan(model, plan, scales)
    parts: dict[str, list[Tensor]] = {"codes": [], "scales": [], "zero_points": [], "rest": []}
    for name, tensor, scheme in _in_order(model, plan):
        if not tensor.isfinite().all():
            raise Refused(f"{name} holds nan or inf: no model was ever better for it.")
        if scheme is None:
            parts["rest"].append(tensor.detach().flatten())
            continue
        codes, scale, zero_point = _quantized(tensor.detach(), scheme, SCALES[scales])
        parts["codes"].append(pack_bits(codes, scheme.bits))
        parts["scales"].append(scale)
        if not scheme.symmetric:
            parts["zero_points"].append(zero_point)
    return _written(model.config, plan, scales, {kind: torch.cat(part) for kind, part in parts.items() if part})


def unpack(content: bytes, config: Seq2SeqConfig | None = None) -> Seq2Seq:
    """The float model of a packed artefact, in eval mode.

    Parameters
    ----------
    content : bytes
        The file.
    config : Seq2SeqConfig or None
        Another configuration than this one is refused.

    Raises
    ------
    Refused
        If the file is damaged, or holds anything that is not the weights of a `Seq2Seq`.
    """
    header, tensors = read_header(content, "packed"), read_tensors(content)
    try:
        stored = Seq2SeqConfig(**header["config"])
        plan = {name: Scheme(*scheme) for name, scheme in header["plan"].items()}
        scales, digest = header["scales"], header["sha256"]
    except (KeyError, TypeError, AttributeError, ValueError, ZeroDivisionError):
        raise Refused("the file's header is not that of a packed artefact.") from None
    if config is not None and stored != config:
        raise Refused("the file's configuration is another one than the reference model's.")
    shapes = blank(stored, "meta")  # what a header asks for is compared with the file before it takes memory
    _check_plan(shapes, plan, scales)
    _check_tensors(shapes, plan, scales, tensors)
    if digest != _digest(stored, plan, scales, tensors):
        raise Refused("the file is damaged: its numbers are not those that its hash was made of.")
    model = blank(stored)
    _fill(model, plan, tensors)
    if _written(stored, plan, scales, tensors) != content:
        raise Refused("the file holds something that is neither weights nor their description.")
    return model


def read_header(content: bytes, key: str) -> dict:
    """The JSON object under `key` in the metadata of a safetensors file.

    Raises
    ------
    Refused
        If there is none.
    """
    try:
        return json.loads(metadata(content)[key])
    except (KeyError, TypeError, ValueError, RecursionError):
        raise Refused("the file's header is damaged, or that of something else.") from None


def metadata(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file; empty if it has none, or is none."""
    try:
        length = int.from_bytes(content[:8], "little")
        return dict(json.loads(content[8 : 8 + length]).get("__metadata__", {}))
    except (ValueError, AttributeError, TypeError, RecursionError):
        return {}


def blank(config: Seq2SeqConfig, device: str = "cpu") -> Seq2Seq:
    """A model of that configuration in eval mode; the random state is as it was."""
    try:
        if any(type(n) is not int or not 0 <= n <= LARGEST.get(key, n) for key, n in config.to_dict().items()):
            raise ValueError
        with torch.random.fork_rng(devices=[]), torch.device(device):
            return Seq2Seq(config).eval()
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError):
        raise Refused("the file's configuration is none that a model can be built of.") from None


def _in_order(model: Seq2Seq, plan: Plan) -> Iterator[tuple[str, Tensor, Scheme | None]]:
    for name, tensor in model.named_parameters():
        yield name, tensor, plan.get(name.removesuffix(".weight")) if name.endswith(".weight") else None


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, Seq2Seq):
        raise Refused(f"only a Seq2Seq can be packed: not {type(model).__name__}.")
    wanted = {name: (p.shape, torch.float32, "cpu") for name, p in blank(model.config, "meta").named_parameters()}
    have = {name: (p.shape, p.dtype, p.device.type) for name, p in model.named_parameters()}
    for name in wanted | have:
        if have.get(name) != wanted.get(name):
            raise Refused(
                f"only a float32 model with weights of its own everywhere can be packed; look at {name}. "
                "(pack does the rounding itself.)"
            )


def _check_plan(model: nn.Module, plan: Plan, scales: str) -> None:
    if not isinstance(scales, str) or scales not in SCALES:
        raise Refused(f"scales are stored as {' or '.join(SCALES)}: not as {scales!r}.")
    if not isinstance(plan, Mapping):
        raise Refused(f"a plan is a dict from the names of matrices to Schemes: not {type(plan).__name__}.")
    known = matrices(model)
    for name, scheme in plan.items():
        if name not in known:
            raise Refused(f"the plan names {name!r}: the model has no such Linear or Embedding.")
        if not isinstance(scheme, Scheme):
            raise Refused(
                f"{name}: a plan gives each matrix a frontier.Scheme(bits, group, symmetric): not {scheme!r}."
            )
        if type(scheme.bits) is not int or not 2 <= scheme.bits <= 8 or type(scheme.symmetric) is not bool:
            raise Refused(f"{name}: a packed matrix has 2 to 8 bits and is symmetric or not, not {scheme}.")
        if scheme.group not in ("channel", None) and type(scheme.group) is not int:
            raise Refused(f'{name}: a group is a number of weights, "channel" or None, not {scheme.group!r}.')
        size = scheme.group_size(known[name])
        if size is not None and size < MIN_GROUP:
            raise Refused(f"{name}: groups of {size} weights have too many scales; {MIN_GROUP} is the smallest group.")
        if size is not None and known[name].shape[1] % size:
            raise Refused(f"{name}: groups of {size} do not divide rows of {known[name].shape[1]} weights.")


def _quantized(weight: Tensor, scheme: Scheme, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (groups, size) from 0, scales (groups,) as they are stored, zero points (groups,)."""
    groups = weight.reshape(-1, scheme.group_size(weight) or weight.numel())
    if scheme.symmetric:
        qmax = 2 ** (scheme.bits - 1) - 1
        scale, zero_point = groups.abs().amax(dim=1) / qmax, torch.full((len(groups),), qmax)
        top = 2 * qmax
    else:
        top = 2**scheme.bits - 1
        low, high = groups.amin(dim=1).clamp(max=0), groups.amax(dim=1).clamp(min=0)
        scale, zero_point = (high - low) / top, None
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    stored = scale.to(dtype).clamp(2.0**-24, torch.finfo(dtype).max)  # smallest number of float16 that is not 0
    scale = stored.float()
    if zero_point is None:
        zero_point = (-low / scale).round().clamp(0, top)
    codes = ((groups / scale[:, None]).round() + zero_point[:, None]).clamp(0, top)
    return codes.int(), stored, zero_point.to(torch.uint8)


def _check_tensors(model: Seq2Seq, plan: Plan, scales: str, tensors: dict[str, Tensor]) -> None:
    """Exactly the tensors that the plan asks for, of the right type and length, finite."""
    lengths = dict.fromkeys(("codes", "scales", "zero_points", "rest"), 0)
    for _, tensor, scheme in _in_order(model, plan):
        if scheme is None:
            lengths["rest"] += tensor.numel()
            continue
        count = tensor.numel() // (scheme.group_size(tensor) or tensor.numel())
        lengths["codes"] += math.ceil(tensor.numel() * scheme.bits / 8)
        lengths["scales"] += count
        lengths["zero_points"] += 0 if scheme.symmetric else count
    for name, tensor in tensors.items():
        if not lengths.get(name):
            raise Refused(f"the file holds {name!r}, {tensor.nbytes:,} bytes, which is no part of the model.")
    for kind, length in lengths.items():
        if not length:
            continue
        if kind not in tensors:
            raise Refused(f"the file's {kind} are missing.")
        if tensors[kind].dtype != (DTYPES | {"scales": SCALES[scales]})[kind] or tensors[kind].shape != (length,):
            raise Refused(
                f"the file's {kind} are {tuple(tensors[kind].shape)} numbers of {tensors[kind].dtype}: its plan needs "
                f"{length:,} of another type or number."
            )
        if not tensors[kind].float().isfinite().all():
            raise Refused(f"the file's {kind} hold nan or inf.")
    if "scales" in tensors and not (tensors["scales"] > 0).all():
        raise Refused("a scale is zero or negative: it multiplies a whole group.")


@torch.no_grad()
def _fill(model: Seq2Seq, plan: Plan, tensors: dict[str, Tensor]) -> None:
    """Copy weights = scale * (code - zero point) into `model`."""
    taken = dict.fromkeys(tensors, 0)

    def take(kind: str, count: int) -> Tensor:
        taken[kind] += count
        return tensors[kind][taken[kind] - count : taken[kind]]

    for name, parameter, scheme in _in_order(model, plan):
        count = parameter.numel()
        if scheme is None:
            parameter.copy_(take("rest", count).reshape(parameter.shape))
            continue
        raw = take("codes", math.ceil(count * scheme.bits / 8))
        codes = unpack_bits(raw, scheme.bits, count)
        qmax = 2 ** (scheme.bits - 1) - 1
        if not torch.equal(pack_bits(codes, scheme.bits), raw) or (scheme.symmetric and int(codes.max()) > 2 * qmax):
            raise Refused(f"{name} holds a code that {scheme.bits} bits of its scheme do not have.")
        codes = codes.reshape(-1, scheme.group_size(parameter) or count)  # (groups, size)
        scale = take("scales", len(codes)).float()
        zero_point = torch.full((len(codes),), qmax) if scheme.symmetric else take("zero_points", len(codes)).int()
        if int(zero_point.max()) > 2**scheme.bits - 1:
            raise Refused(f"{name} has a zero point that is no code of {scheme.bits} bits.")
        parameter.copy_(((codes - zero_point[:, None]) * scale[:, None]).reshape(parameter.shape))


def read_tensors(content: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises
    ------
    Refused
        If it is damaged, or none.
    """
    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError):
        raise Refused("the file is damaged: it cannot be read as safetensors.") from None


def _described(config: Seq2SeqConfig, plan: Plan, scales: str) -> dict[str, object]:
    ordered = {name: [s.bits, s.group, s.symmetric] for name, s in sorted(plan.items())}
    return {"config": config.to_dict(), "plan": ordered, "scales": scales}


def _digest(config: Seq2SeqConfig, plan: Plan, scales: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(_described(config, plan, scales)).encode())
    for kind in sorted(tensors):
        digest.update(tensors[kind].numpy().tobytes())
    return digest.hexdigest()


def _written(config: Seq2SeqConfig, plan: Plan, scales: str, tensors: dict[str, Tensor]) -> bytes:
    header = _described(config, plan, scales) | {"sha256": _digest(config, plan, scales, tensors)}
    return save(tensors, {"packed": json.dumps(header, separators=(",", ":"))})
