"""The model against PyTorch's own modules with the same weights."""

import pytest
import torch
from torch import nn

from helpers import models
from helpers.models import ModelConfig, TransformerLM


@pytest.fixture
def small():
    torch.manual_seed(0)
    model = TransformerLM(ModelConfig(context=12, d_model=32, n_heads=4, n_layers=2, d_ff=48)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def test_attention_equals_torch_multihead_attention(small):
    ours = small.blocks[0].attention
    theirs = nn.MultiheadAttention(32, 4, batch_first=True).eval()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.q.weight, ours.k.weight, ours.v.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.q.bias, ours.k.bias, ours.v.bias]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
        x = torch.randn(3, 7, 32)
        mask = models.causal_mask(7)
        expected, weights = theirs(x, x, x, attn_mask=~mask, average_attn_weights=False)
        torch.testing.assert_close(ours(x, mask), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.probabilities(x, mask), weights, atol=1e-6, rtol=1e-5)


def test_block_equals_torch_encoder_layer(small):
    ours = small.blocks[0]
    theirs = nn.TransformerEncoderLayer(32, 4, 48, dropout=0, activation="gelu", batch_first=True, norm_first=True)
    with torch.no_grad():
        attention = ours.attention
        theirs.self_attn.in_proj_weight.copy_(torch.cat([attention.q.weight, attention.k.weight, attention.v.weight]))
        theirs.self_attn.in_proj_bias.copy_(torch.cat([attention.q.bias, attention.k.bias, attention.v.bias]))
        theirs.self_attn.out_proj.load_state_dict(attention.out.state_dict())
        for name, part in [
            ("linear1", ours.ffn.up),
            ("linear2", ours.ffn.down),
            ("norm1", ours.norm1),
            ("norm2", ours.norm2),
        ]:
            getattr(theirs, name).load_state_dict(part.state_dict())
        x = torch.randn(2, 9, 32)
        mask = models.causal_mask(9)
        expected = theirs(x, src_mask=~mask)
        torch.testing.assert_close(ours(x, mask), expected, atol=1e-4, rtol=1e-4)


def test_the_future_changes_nothing(small):
    ids = torch.randint(256, (2, 12))
    changed = ids.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % 256
    with torch.no_grad():
        torch.testing.assert_close(small(ids)[:, :8], small(changed)[:, :8])
        assert not torch.allclose(small(ids)[:, 8:], small(changed)[:, 8:])


def test_positions_are_the_formula():
    table = models.sinusoidal_positions(5, 6)
    assert table.dtype == torch.float32
    torch.testing.assert_close(table[0], torch.tensor([0.0, 1, 0, 1, 0, 1]))
    torch.testing.assert_close(table[3, 2], torch.tensor(3 / 10000 ** (2 / 6)).sin())


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_the_embedding(tied):
    model = TransformerLM(ModelConfig(context=8, d_model=16, n_heads=2, n_layers=1, d_ff=16, tied_head=tied))
    assert (model.head.weight is model.embedding.weight) == tied


def test_generation_is_reproducible_and_greedy_takes_the_likeliest(small):
    prompt = torch.randint(256, (1, 3))
    draws = [small.generate(prompt, 20, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*draws) and draws[0].shape == (1, 23)
    greedy = small.generate(prompt, 1, temperature=0)
    assert greedy[0, -1] == small(prompt)[0, -1].argmax()


def test_attention_maps_are_probabilities_of_the_forward_pass(small):
    maps = small.attention_maps(torch.randint(256, (2, 6)))
    assert [m.shape for m in maps] == [(2, 4, 6, 6)] * 2
    for probabilities in maps:
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(2, 4, 6))
        assert not probabilities.triu(1).any()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: ModelConfig(d_model=30, n_heads=4), "multiple of n_heads"),
        (lambda: models.sinusoidal_positions(3, 5), "must be even"),
        (lambda: TransformerLM(ModelConfig(context=4, d_model=8, n_heads=2))(torch.zeros(1, 5, dtype=torch.long)), "at most 4"),  # noqa: E501
        (lambda: TransformerLM(ModelConfig(context=4, d_model=8, n_heads=2)).generate(torch.zeros(1, 0, dtype=torch.long), 1), "prompt is empty"),  # noqa: E501
    ],
)  # fmt: skip
def test_bad_input_gets_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
