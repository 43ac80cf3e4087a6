import pytest
import torch

pytest.importorskip(
    "vllm.v1", reason="vLLM is not installed: `make vllm` installs it in .venv-vllm, and tests it"
)

from torch import nn
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.rotary_embedding import get_rope

from kvpolicy.observation.rotary import PlainRotary
from kvpolicy.vllm.rotary import rotary_of

HEADS, DIM = 2, 64


def _attention(is_neox_style=True, **parameters):
    rope = {"rope_theta": 10_000.0, "rope_type": "default", **parameters}
    attention = nn.Module()
    with set_current_vllm_config(VllmConfig()):
        attention.rotary_emb = get_rope(
            DIM,
            max_position=128,
            is_neox_style=is_neox_style,
            rope_parameters=rope,
            dtype=torch.float32,
        )
    return attention


@pytest.mark.parametrize("is_neox_style", [True, False])
def test_the_tables_are_those_of_the_formula_also_behind_the_models_table(is_neox_style):
    rotary = rotary_of(_attention(is_neox_style), HEADS, DIM)
    positions = torch.tensor([[0, 1, 127], [128, 200, 254], [255, 300, 500]])
    want = PlainRotary(dim=DIM, interleaved=not is_neox_style).tables(positions)
    for own, other in zip(rotary.tables(positions), want, strict=True):
        torch.testing.assert_close(own, other, atol=2e-5, rtol=0)
    assert rotary.interleaved is not is_neox_style


def test_a_scale_of_the_model_is_taken_out():
    attention = _attention(
        rope_type="yarn", factor=4.0, original_max_position_embeddings=32, attention_factor=1.3
    )
    rotary = rotary_of(attention, HEADS, DIM)
    cosines, sines = rotary.tables(torch.arange(20))
    torch.testing.assert_close(cosines.square() + sines.square(), torch.ones(20, DIM))


def test_a_layer_without_rotary_embedding_has_none():
    assert rotary_of(nn.Module(), HEADS, DIM) is None


def test_a_module_that_turns_otherwise_is_not_understood():
    attention = _attention()
    attention.rotary_emb.forward_native = lambda place, queries, keys: (queries, keys + place)
    assert rotary_of(attention, HEADS, DIM) is None
