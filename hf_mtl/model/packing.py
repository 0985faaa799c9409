"""Sequence packing: the encoder runs on real tokens alone, each of which attends to those of its own row."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import AttentionInterface, PreTrainedModel

from hf_mtl.errors import ModelError
from hf_mtl.model.attention_implementation import attention_implementation
from hf_mtl.model.encoders.base import EncoderAdapter, first_position

if TYPE_CHECKING:
    from hf_mtl.model.modeling import MultiTaskModel

PACKED = "hf_mtl_packed"
"""What the attention below is called in transformers' `AttentionInterface`."""
_MEND = "leave packing out, or use BERT or one of its relatives"


@contextmanager
def packed(model: MultiTaskModel) -> Generator[None]:
    """Let a model's encoder run on packed tokens inside the block, one row of all real tokens of a batch.

    What the model returns is the same but for rounding; its states are 0 on padding. Nothing is computed for padding
    but inside attention on a CPU; on a GPU attention reads jagged rows, too. Krell et al. 2021, "Efficient Sequence
    Packing without Cross-contamination", https://arxiv.org/abs/2107.02027.

    Args:
        model: the model.

    Raises:
        ModelError: the encoder's attention is not transformers' own, or does more than scaled dot products.

    Example:
        >>> from hf_mtl.model.modeling import MultiTaskModel
        >>> from transformers import BertConfig
        >>> encoder = BertConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2, vocab_size=9)
        >>> model = MultiTaskModel.from_encoder(encoder, [{"name": "stars", "type": "regression"}]).eval()
        >>> batch = {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 0]]),
        ...          "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
        >>> with packed(model):
        ...     stars = model(**batch).logits["stars"]
        >>> torch.allclose(stars, model(**batch).logits["stars"], atol=1e-6)
        True
    """
    check_packing(model)
    adapter = model.adapter
    model.adapter = _packing(adapter)
    try:
        with attention_implementation(model.encoder, PACKED):
            yield
    finally:
        model.adapter = adapter


def check_packing(model: MultiTaskModel) -> None:
    """Check on two rows that an encoder gives the same states for packed tokens.

    Raises:
        ModelError: it does not.
    """
    encoder: Any = model.encoder
    where = f"architecture {encoder.config.model_type!r}"
    if encoder.config._attn_implementation == "eager" or not encoder._supports_sdpa:
        problem = "packing takes the place of attention that a task reads, or that is the encoder's own"
        raise ModelError(problem, where=where, mend=_MEND)
    pad = encoder.config.pad_token_id or 0
    mask = torch.ones(2, 5, dtype=torch.long, device=encoder.device)
    mask[1, 3:] = 0
    ids = torch.where(mask.bool(), mask.cumsum(dim=1) + pad, pad)  # some architectures take the padding's id for it
    inputs: dict[str, Tensor | None] = {"input_ids": ids, "attention_mask": mask}
    training = encoder.training
    encoder.eval()
    try:
        with torch.no_grad():
            expected = model.adapter.run(encoder, inputs).last_hidden_state
            with attention_implementation(encoder, PACKED):
                found = _packing(model.adapter).run(encoder, inputs).last_hidden_state
    finally:
        encoder.train(training)
    real = mask.bool()
    off = (cast(Tensor, found)[real] - cast(Tensor, expected)[real]).abs().max()
    allowed = torch.finfo(encoder.dtype).eps ** 0.5 * cast(Tensor, expected)[real].abs().max()
    if not off <= allowed:
        raise ModelError(f"packed tokens get other states, {float(off):.1e} off", where=where, mend=_MEND)


@dataclass(frozen=True)
class PackedRows:
    """Where the packed tokens stand.

    Args:
        mask: which tokens are real, `(batch_size, seq_len)`.
        places: the place of each packed token in the flattened batch, `(tokens,)`.
        offsets: where each row begins among the packed tokens, and the end, `(batch_size + 1,)`.
    """

    mask: Tensor
    places: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, attention_mask: Tensor) -> PackedRows:
        mask = attention_mask.bool()
        # How many tokens there are is known only when the mask is: on a GPU this waits for it, once a micro-batch.
        return cls(mask, mask.flatten().nonzero().squeeze(-1), F.pad(mask.sum(dim=1).cumsum(0), (1, 0)))

    def pack(self, values: Tensor) -> Tensor:
        """Turn `(batch_size, seq_len, ...)` into `(1, tokens, ...)`."""
        return values.flatten(0, 1)[self.places][None]

    def unpack(self, values: Tensor) -> Tensor:
        """Turn `(1, tokens, ...)` into `(batch_size, seq_len, ...)`, 0 on padding."""
        flat = values.new_zeros(self.mask.numel(), *values.shape[2:])
        return flat.index_copy(0, self.places, values[0]).unflatten(0, self.mask.shape)


def _packing(adapter: type[EncoderAdapter]) -> type[EncoderAdapter]:
    """Return an adapter that runs the encoder on real tokens alone."""

    class PackingAdapter(adapter):
        @classmethod
        def run(cls, encoder: PreTrainedModel, inputs: dict[str, Tensor | None], **options: Any) -> BaseModelOutput:
            if options.get("output_attentions"):
                raise ModelError("packed attention has no weights to return", mend="leave packing out")
            given = {name: value for name, value in inputs.items() if value is not None}
            main = given["input_ids"] if "input_ids" in given else given["inputs_embeds"]
            mask = given.pop("attention_mask", None)
            rows = PackedRows.of(main.new_ones(main.shape[:2], dtype=torch.bool) if mask is None else mask)
            packed: dict[str, Tensor | None] = {name: rows.pack(value) for name, value in given.items()}
            if "position_ids" not in packed:
                packed["position_ids"] = rows.pack(rows.mask.cumsum(dim=1) - 1 + first_position(encoder.config))
            outputs = super().run(encoder, packed, packed_rows=rows, **options)
            states = outputs.hidden_states
            return BaseModelOutput(
                last_hidden_state=cast(Any, rows.unpack(cast(Tensor, outputs.last_hidden_state))),
                hidden_states=None if states is None else cast(Any, tuple(map(rows.unpack, states))),
            )

    return PackingAdapter


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed_rows: PackedRows | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend within rows; `query`, `key` and `value` are `(1, num_heads, tokens, head_size)`."""
    more = [name for name in ("position_bias", "sliding_window", "softcap", "s_aux") if kwargs.get(name) is not None]
    more += ["is_causal"] if kwargs.get("is_causal") or getattr(module, "is_causal", False) else []
    more += ["attention_mask"] if attention_mask is not None else []
    if packed_rows is None or more:
        problem = f"its attention has {', '.join(more)}" if more else "it keeps arguments from its attention"
        raise ModelError(f"packing does not work with this encoder: {problem}", mend=_MEND)
    # Keys and values that several query heads share.
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
    attend = attend_jagged if query.device.type == "cuda" else attend_padded
    heads = (states[0].transpose(0, 1) for states in (query, key, value))
    return attend(packed_rows, *heads, dropout_p=dropout, scale=scaling)[None], None


def attend_padded(rows: PackedRows, *heads: Tensor, **options: Any) -> Tensor:
    """Attend between padded rows; tensors are `(tokens, num_heads, head_size)`."""
    query, key, value = (rows.unpack(states[None]).transpose(1, 2) for states in heads)
    found = F.scaled_dot_product_attention(query, key, value, attn_mask=rows.mask[:, None, None], **options)
    return rows.pack(found.transpose(1, 2))[0]


def attend_jagged(rows: PackedRows, *heads: Tensor, **options: Any) -> Tensor:
    """Attend between rows of different lengths, with kernels for GPUs; tensors as above."""
    longest = rows.mask.shape[1]
    query, key, value = (
        torch.nested.nested_tensor_from_jagged(
            states.contiguous(), rows.offsets, min_seqlen=1, max_seqlen=longest
        ).transpose(1, 2)
        for states in heads
    )
    return F.scaled_dot_product_attention(query, key, value, **options).transpose(1, 2).values()


AttentionInterface.register(PACKED, cast(Any, _attend))
