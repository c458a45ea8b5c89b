"""Names of layers on axes."""

import pytest

from moegate.report.traces.names import layer_labels


@pytest.mark.parametrize(
    ("layers", "labels"),
    [
        (["model.layers.3.mlp", "model.layers.10.mlp"], ["3", "10"]),
        (["encoder.layers.1.ffn", "decoder.layers.1.ffn"], ["encoder", "decoder"]),
        (["encoder.1.ffn", "encoder.3.ffn", "decoder.1.ffn"], ["encoder.1", "encoder.3", "decoder.1"]),
        (["layers.1.a.0", "layers.2.a.0"], ["1", "2"]),
        (["a", "a", "a"], ["0", "1", "2"]),
        (["mlp"], ["0"]),
        (["", ""], ["0", "1"]),
        (["a", "a.b"], ["0", "1"]),
        ([], []),
    ],
)
def test_labels_are_short_and_tell_layers_apart(layers: list[str], labels: list[str]) -> None:
    assert layer_labels(layers) == labels
