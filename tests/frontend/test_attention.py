"""An encoder and a decoder with attention: the length of the source is a symbol of its own in the decoder."""

from __future__ import annotations

import pytest
import torch

from tests.frontend.running import check
from tvm_doping.errors import InvalidInput
from tvm_doping.frontend import import_model
from tvm_doping.models.tasks.seq2seq import Translator


def model() -> Translator:
    torch.manual_seed(0)
    return Translator(11, 13, 6, 8, layers=3).eval()


def test_an_encoder_reads_whole_sentences() -> None:
    imported = import_model(model().encoder)
    assert [t.shape for t in imported.signature.outputs] == [("T", "N", 8), ("T", "N", 8)]
    assert not imported.signature.streaming
    check(imported, sizes=((5, 2), (1, 1)))


def test_a_decoder_steps_through_a_memory_of_any_length() -> None:
    imported = import_model(model().decoder)
    assert [t.shape for t in imported.signature.inputs] == [("T", "N"), ("T1", "N", 8), ("T1", "N", 8)]
    assert [(t.name, t.shape) for t in imported.signature.state] == [("h", (3, "N", 8)), ("c", (3, "N", 8))]
    assert imported.signature.streaming
    check(imported, sizes=((5, 2), (1, 1)))


def test_teacher_forcing_is_stepping() -> None:
    """Over all steps at once, as in training, and one by one with the state carried on, as in translation."""
    whole = model()
    source, target = torch.randint(11, (5, 2)), torch.randint(13, (4, 2))
    memory = whole.encoder(source)
    state, steps = None, []
    for token in target:
        logits, state = whole.decoder(token[None], *memory, state)
        steps.append(logits)
    torch.testing.assert_close(torch.cat(steps), whole(source, target), rtol=0, atol=1e-6)


@pytest.mark.parametrize("wrong", [{"hidden": 7}, {"layers": 0}, {"dropout": 1.0}, {"tied": True}], ids=str)
def test_impossible_sizes_are_refused(wrong: dict[str, float]) -> None:
    sizes = {"source_vocab": 11, "target_vocab": 13, "embedding": 6, "hidden": 8, **wrong}
    with pytest.raises(InvalidInput):
        Translator(**sizes)  # type: ignore[arg-type]
