"""Unit 06, section 4: what learners really enter in exercise 6.4."""

import copy
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from helpers import challenge, dates, entries, frontier, judge, packed, rounding, seq2seq
from helpers.frontier import Scheme
from tests.misconceptions.bank import right, wrong


def affine(bits):
    return Scheme(bits, "channel", symmetric=False)


def small_plan(model):
    """A plan within budget and above the floor, chosen by hand."""
    names = frontier.matrices(model)
    three = {name for name in names if "attention.q" in name or "attention.k" in name or name.endswith(".v")}
    ends = dict.fromkeys(("embedding", "head"), affine(4))
    return {name: affine(3 if name in three else 2) for name in names} | ends


def header(content):
    return packed.metadata(content)


@wrong("ex_6_4", "more than the budget")
def eight_bits_everywhere(model):
    return challenge.pack(model, frontier.everywhere(model, Scheme(8)))


@wrong("ex_6_4", "lies below the floor")
def two_bits_everywhere(model):
    return challenge.pack(model, frontier.everywhere(model, affine(2)))


@wrong("ex_6_4", "near the floor, but not certainly above it")
def content_with_luck(model):
    names = frontier.matrices(model)
    return challenge.pack(model, {n: affine(4 if n == "embedding" else 3 if n.endswith(".v") else 2) for n in names})


@wrong("ex_6_4", "the judge refuses your entry: the file is damaged, or holds pickled Python code")
def the_whole_model_pickled(model):
    stream = io.BytesIO()
    torch.save(model, stream)
    return stream.getvalue()


@wrong("ex_6_4", "the file holds something else than the state of a model")
def a_bare_state_dict(model):
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    return stream.getvalue()


@wrong("ex_6_4", "the file holds 'original'")
def float_weights_beside_the_codes(model):
    content = challenge.pack(model, frontier.everywhere(model, affine(2)))
    tensors = safetensors.torch.load(content) | {"original": model.embedding.weight.detach().clone()}
    return safetensors.torch.save(tensors, header(content))


@wrong("ex_6_4", "neither weights nor their description")
def answers_in_the_header(model):
    content = challenge.pack(model, small_plan(model))
    answers = " ".join(dates.pairs("training", 5, 0)[2])
    return safetensors.torch.save(safetensors.torch.load(content), header(content) | {"answers": answers})


@wrong("ex_6_4", "have too many scales")
def a_scale_for_every_four_weights(model):
    return challenge.pack(model, frontier.everywhere(model, Scheme(2, 4)))


@wrong("ex_6_4", "your function changed `model`")
@torch.no_grad()
def rounded_in_place(model):
    for name, scheme in small_plan(model).items():
        weight = model.get_submodule(name).weight
        weight.copy_(rounding.round_to_nearest(weight, scheme.bits, weight.shape[1], scheme.symmetric))
    return challenge.pack(model, small_plan(model))


@wrong("ex_6_4", "looks at held-out dates")
def chosen_on_what_it_is_judged_by(model):
    tried = [challenge.pack(model, small_plan(model) | {"head": affine(bits)}) for bits in (2, 4)]
    source, target, _ = dates.pairs("held_out", 100, 7)
    right = [int(seq2seq.exact_matches(challenge.unpack(entry), source, target).sum()) for entry in tried]
    return tried[right.index(max(right))]


@wrong("ex_6_4", "asks the judge without `exam=`")
def chosen_by_the_judge(model):
    best = None
    for bits in (2, 3, 4):
        entry = challenge.pack(model, small_plan(model) | {"head": affine(bits)})
        result = challenge.submit_entry(entry)
        if result.meets_budget and (best is None or result.loss.estimate < best[0]):
            best = (result.loss.estimate, entry)
    return best[1]


@wrong("ex_6_4", "looks at held-out dates", like="chosen_on_what_it_is_judged_by")
def chosen_on_dates_sorted_by_hand(model):
    days = [d for split in dates._splits().values() for d in split if dates.split_of(d) == "held_out"][:200]
    source = dates.encode([dates.FORMS["day month year"](d) for d in days])
    target = dates.encode([d.isoformat() for d in days], dates.TARGET_LENGTH)
    tried = [challenge.pack(model, small_plan(model) | {"head": affine(bits)}) for bits in (2, 4)]
    right = [int(seq2seq.exact_matches(challenge.unpack(e), source, target).sum()) for e in tried]
    return tried[right.index(max(right))]


@wrong("ex_6_4", "a file of `float_reader`, or of a reader that it loads itself")
def ignores_its_argument(model):
    reader = challenge.load_date_reader()
    return challenge.pack(reader, small_plan(reader))


@wrong("ex_6_4", "whose weights have nothing to do with")
def the_untrained_model(model):
    return challenge.pack(packed.blank(model.config), small_plan(model))


@wrong("ex_6_4", "another entry the second time")
@torch.no_grad()
def not_seeded(model):
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        parameter.add_(1e-4 * torch.randn_like(parameter))
    return challenge.pack(twin, small_plan(model))


@wrong("ex_6_4", "a gradient is left in embedding.weight")
def sensitivities_by_gradient(model):
    source, target, _ = dates.pairs("training", 16, 1)
    F.cross_entropy(model(source, seq2seq.shifted(target)).transpose(1, 2), target).backward()
    return challenge.pack(model, small_plan(model))


@wrong("ex_6_4", "does your function end with `return`?")
def nothing_returned(model):
    challenge.pack(model, small_plan(model))


@wrong("ex_6_4", "return the bytes that challenge.pack makes")
def the_float_file(model):
    return entries.float_file(model)


@wrong("ex_6_4", "The embedding has bits enough")
def bits_for_the_ends_only(model):
    ends = dict.fromkeys(("embedding", "head"), affine(4))
    return challenge.pack(model, frontier.everywhere(model, Scheme(2, None, False)) | ends)


@wrong("ex_6_4", "my_entry returns a model")
def a_model_and_no_file(model):
    return frontier.rounded(model, small_plan(model))


def trained(model, plan, steps):
    twin = copy.deepcopy(model)
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.2)
    for step in range(steps):
        source, target, _ = dates.pairs("training", 64, 6400 + step)
        values = {}
        for name, parameter in twin.named_parameters():
            scheme = plan.get(name.removesuffix(".weight"))
            if scheme is None or not name.endswith(".weight"):
                values[name] = parameter
                continue
            flat = parameter.detach()
            to = rounding.round_to_nearest(flat, scheme.bits, scheme.group_size(flat), scheme.symmetric)
            values[name] = parameter + (to - flat)
        logits = torch.func.functional_call(twin, values, (source, seq2seq.shifted(target)))
        loss = F.cross_entropy(logits.transpose(1, 2), target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return twin


@wrong("ex_6_4", "with the very plan that is packed?")
def trained_for_another_grid(model):
    return challenge.pack(
        trained(model, frontier.everywhere(model, Scheme(3)), 6), frontier.everywhere(model, affine(2))
    )


@wrong("ex_6_4", "To save bytes, use challenge.pack")
def float_weights_in_a_deflated_torch_file(model):
    ends = dict.fromkeys(("embedding", "head"), affine(4))
    plan = {name: Scheme(2, None, False) for name in frontier.matrices(model)} | ends
    small = packed.unpack(challenge.pack(trained(model, plan, 6), plan))
    about = {"config": model.config.to_dict(), "kind": "dynamic", "dynamic": []}
    stream, smaller = io.BytesIO(), io.BytesIO()
    torch.save({"about": json.dumps(about), "state": small.state_dict()}, stream)
    archive = zipfile.ZipFile(stream)
    with zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as out:
        for name in archive.namelist():
            out.writestr(name, archive.read(name))
    return smaller.getvalue()


@wrong("ex_6_4", "asks the judge without `exam=`", like="chosen_by_the_judge")
def chosen_by_the_judge_next_door(model):
    """The judge in a process of its own is the same judge."""
    tried = [challenge.pack(model, small_plan(model) | {"head": affine(bits)}) for bits in (3, 4)]
    with tempfile.TemporaryDirectory() as name:
        losses = []
        for entry in tried:
            (Path(name) / "entry").write_bytes(entry)
            losses.append(judge.judged(Path(name) / "entry", count=40)["loss"][0])
    return tried[losses.index(min(losses))]


@wrong("ex_6_4", "asks the judge without `exam=`", like="chosen_by_the_judge")
def chosen_by_the_command_line(model):
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "entry").write_bytes(challenge.pack(model, small_plan(model)))
        command = [sys.executable, "-m", "helpers.challenge", str(Path(name) / "entry"), "--count", "3"]
        subprocess.run(command, cwd=Path(challenge.__file__).parents[1], check=True, capture_output=True)
    return challenge.pack(model, small_plan(model))


@wrong("ex_6_4", "another entry the second time", like="not_seeded")
@torch.no_grad()
def a_generator_without_a_seed(model):
    """The global states stay as they were."""
    twin, generator = copy.deepcopy(model), np.random.default_rng()
    for parameter in twin.parameters():
        parameter.add_(1e-4 * torch.from_numpy(generator.standard_normal(parameter.shape)).float())
    return challenge.pack(twin, small_plan(model))


@wrong("ex_6_4", "requires_grad")
def freezes_the_model(model):
    model.requires_grad_(False)
    return challenge.pack(model, small_plan(model))


@wrong("ex_6_4", "not PosixPath")
def a_path_and_no_bytes(model):
    return Path("my_entry.safetensors")


@wrong("ex_6_4", "refuses your entry: the file is damaged: it cannot be read as safetensors")
def a_file_cut_short(model):
    return challenge.pack(model, small_plan(model))[:-8]


@right("ex_6_4")
def by_a_generator_with_a_seed(model):
    draw = np.random.default_rng(5)
    heads = draw.permutation([4, 4])
    return challenge.pack(model, small_plan(model) | {"head": affine(int(heads[0]))})


@right("ex_6_4")
def chosen_on_validation(model):
    exam = challenge.draw_exam(model, seed=1, count=200, split="validation")
    tried = [challenge.pack(model, small_plan(model) | {"head": affine(bits)}) for bits in (3, 4)]
    return min(tried, key=lambda entry: challenge.submit_entry(entry, exam=exam).loss.estimate)


@right("ex_6_4")
@torch.no_grad()
def seeded_noise_in_a_twin_built_anew(model):
    torch.manual_seed(5)
    twin = seq2seq.Seq2Seq(model.config).eval()
    twin.load_state_dict(model.state_dict())
    for parameter in twin.parameters():
        parameter.add_(1e-5 * torch.randn_like(parameter))
    return challenge.pack(twin, small_plan(model))


@right("ex_6_4")
def a_plan_by_hand(model):
    return challenge.pack(model, small_plan(model))


@right("ex_6_4")
def trained_at_two_bits(model):
    ends = dict.fromkeys(("embedding", "head"), affine(4))
    plan = {name: affine(2) for name in frontier.matrices(model)} | ends
    return challenge.pack(trained(model, plan, 110), plan)


@wrong("ex_6_4", "the file's zero_points are missing")
def zero_points_left_out(model):
    content = challenge.pack(model, small_plan(model))
    tensors = safetensors.torch.load(content)
    return safetensors.torch.save({kind: tensors[kind] for kind in ("codes", "scales", "rest")}, header(content))


@wrong("ex_6_4", "a scale is zero or negative")
def rows_of_zeros(model):
    """Scales of 0 would save the codes of whole rows."""
    content = challenge.pack(model, small_plan(model))
    tensors = safetensors.torch.load(content)
    return safetensors.torch.save(tensors | {"scales": torch.zeros_like(tensors["scales"])}, header(content))
