"""A bidirectional LSTM: the encoder before transformers, small and fast, trained from random weights."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar, cast

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import PreTrainedModel

from hf_mtl.errors import SpecError
from hf_mtl.model.encoders.base import LSTM_TYPE, EncoderAdapter
from hf_mtl.model.precision import best_precision
from hf_mtl.registry import ENCODERS

ModelClass = TypeVar("ModelClass", bound=type[PreTrainedModel])


@strict(accept_kwargs=True)
class LstmConfig(PreTrainedConfig):
    """Sizes of a bidirectional LSTM.

    Args:
        vocab_size: number of tokens.
        hidden_size: size of a token's state, half of it from each direction; an even number.
        num_hidden_layers: number of layers.
        embedding_size: size of a token's embedding; that of its state where not given.
        hidden_dropout_prob: dropout of the embeddings and after each layer.
        initializer_range: standard deviation of new embeddings.
        pad_token_id: the padding token.

    Raises:
        SpecError: `hidden_size` is odd.
    """

    model_type: ClassVar[str] = LSTM_TYPE

    vocab_size: int = 16000
    hidden_size: int = 256
    num_hidden_layers: int = 2
    embedding_size: int | None = None
    hidden_dropout_prob: float = 0.1
    initializer_range: float = 0.1
    pad_token_id: int | None = 0

    def __post_init__(self, **kwargs: Any) -> None:
        if self.hidden_size % 2:
            raise SpecError(f"hidden_size is {self.hidden_size}", mend="give an even number: half for each direction")
        super().__post_init__(**kwargs)


def known_to_transformers(model: ModelClass) -> ModelClass:
    """Register a class of models, and that of its configuration, with the Auto classes."""
    config: Any = model.config_class
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(config, model, exist_ok=True)
    return model


class LstmLayer(nn.Module):
    """One LSTM that reads from the first token to the last, and one that reads from the last to the first.

    Args:
        hidden_size: size of a token's state.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.ahead = nn.LSTM(hidden_size, hidden_size // 2, batch_first=True)
        self.back = nn.LSTM(hidden_size, hidden_size // 2, batch_first=True)

    def forward(self, hidden_states: Tensor, ahead: Tensor, back: Tensor) -> Tensor:
        """Read the tokens in both directions.

        Args:
            hidden_states: `(batch_size, seq_len, hidden_size)`.
            ahead: place of each token where real ones come first, `(batch_size, seq_len)`.
            back: the same with the real ones in reverse.

        Returns:
            `(batch_size, seq_len, hidden_size)`.
        """
        read: list[Tensor] = []
        for lstm, places in ((self.ahead, ahead), (self.back, back)):
            if hidden_states.is_cuda:
                lstm.flatten_parameters()  # weights that were loaded lie apart, which cuDNN warns of
            index = places.unsqueeze(2)
            ordered = torch.zeros_like(hidden_states).scatter(1, index.expand_as(hidden_states), hidden_states)
            states = _read(lstm, ordered)
            read.append(states.gather(1, index.expand_as(states)))
        return torch.cat(read, dim=2)


def _read(lstm: nn.LSTM, states: Tensor) -> Tensor:
    """Run an LSTM; on a CPU that only emulates bfloat16 in its own precision: oneDNN has none there for autocast."""
    if states.device.type == "cpu" and torch.is_autocast_enabled("cpu") and best_precision("cpu") == "fp32":
        with torch.autocast("cpu", enabled=False):
            return lstm(states.to(cast(Tensor, lstm.weight_ih_l0).dtype))[0]
    return lstm(states)[0]


@known_to_transformers
class LstmModel(PreTrainedModel):
    """A bidirectional LSTM over the real tokens of each row, wherever its padding stands.

    Hochreiter and Schmidhuber 1997, "Long Short-Term Memory" (https://doi.org/10.1162/neco.1997.9.8.1735); in both
    directions Graves and Schmidhuber 2005 (https://doi.org/10.1016/j.neunet.2005.06.042). Real tokens are brought to
    the front of a row, in order for one direction and in reverse for the other, so that both begin with a real token
    and none is read after padding: what packed sequences do, in operations that graphs can hold.

    Args:
        config: the sizes.

    Example:
        >>> encoder = LstmModel(LstmConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1)).eval()
        >>> ids, mask = torch.tensor([[5, 6, 0]]), torch.tensor([[1, 1, 0]])
        >>> padded = encoder(input_ids=ids, attention_mask=mask).last_hidden_state[:, :2]
        >>> torch.allclose(padded, encoder(input_ids=ids[:, :2]).last_hidden_state, atol=1e-6)
        True
    """

    config_class = LstmConfig
    config: LstmConfig
    base_model_prefix = "lstm"
    main_input_name = "input_ids"

    def __init__(self, config: LstmConfig) -> None:
        super().__init__(config)
        size = config.embedding_size or config.hidden_size
        self.embeddings = nn.Embedding(config.vocab_size, size, padding_idx=config.pad_token_id)
        self.projection = nn.Linear(size, config.hidden_size) if size != config.hidden_size else nn.Identity()
        self.layers = nn.ModuleList([LstmLayer(config.hidden_size) for _ in range(config.num_hidden_layers)])
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings = cast(nn.Embedding, value)

    def _init_weights(self, module: nn.Module) -> None:
        if not isinstance(module, nn.LSTM):
            super()._init_weights(module)
            return
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1:
                (init.orthogonal_ if "hh" in name else init.xavier_uniform_)(parameter)
            else:
                # Gates that forget, the second quarter, begin open: what was read stays.
                start = torch.zeros(4, module.hidden_size, device="cpu")
                start[1] = float("ih" in name)
                init.copy_(parameter, start.flatten())

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput:
        """Read rows.

        Args:
            input_ids: token ids `(batch_size, seq_len)`.
            attention_mask: 1 for real tokens, 0 for padding, `(batch_size, seq_len)`; all real where not given.
            inputs_embeds: embeddings instead of `input_ids`, `(batch_size, seq_len, embedding_size)`.
            output_hidden_states: whether to return the states after the embeddings and after each layer.
            return_dict: not used: a named output is returned.
        """
        embedded = inputs_embeds if inputs_embeds is not None else self.embeddings(input_ids)
        states = self.dropout(self.projection(embedded))
        mask = torch.ones_like(states[..., 0]) if attention_mask is None else attention_mask
        ahead, back = _places(mask)
        layers = [states]
        for layer in self.layers:
            states = self.dropout(layer(states, ahead, back))
            layers.append(states)
        kept: Any = tuple(layers) if output_hidden_states else None
        return BaseModelOutput(last_hidden_state=states, hidden_states=kept)


def _places(attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the place of each token where real ones come first, in order and in reverse, `(batch_size, seq_len)`."""
    real = (attention_mask != 0).long()
    count = real.sum(dim=1, keepdim=True)
    ahead = torch.where(real == 1, real.cumsum(dim=1) - 1, count + (1 - real).cumsum(dim=1) - 1)
    return ahead, torch.where(real == 1, count - 1 - ahead, ahead)


@ENCODERS.register("lstm")
class LstmAdapter(EncoderAdapter):
    """Bidirectional LSTMs, which have neither attention nor segments nor a limit of positions."""

    reads_segments = False
    fits_graphs = False  # torch.export 2.13 writes the loop over the tokens out, for as many as it has traced

    @classmethod
    def matches(cls, config: PreTrainedConfig) -> bool:
        return config.model_type == LSTM_TYPE

    @classmethod
    def auto_class(cls) -> Any:
        return AutoModel

    @classmethod
    def build(cls, config: PreTrainedConfig) -> PreTrainedModel:
        return LstmModel(cast(LstmConfig, config))
