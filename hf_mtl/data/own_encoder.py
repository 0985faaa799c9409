"""An encoder that a recipe describes instead of naming one: its sizes, and a tokenizer, given or trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, cast

from hf_mtl.errors import RecipeError, one_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
    from transformers.configuration_utils import PreTrainedConfig

    from hf_mtl.data.dataset_source import DatasetSource
    from hf_mtl.data.loading import RawSplit

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
VOCAB_SIZE = 16000
"""Tokens of a trained tokenizer where no number is given."""


@dataclass(frozen=True, kw_only=True)
class OwnEncoder:
    """An encoder with random weights: in a recipe, `encoder: {type: lstm, hidden_size: 256}`.

    Args:
        type: `"lstm"`, a bidirectional LSTM.
        hidden_size: size of a token's state, an even number.
        num_layers: number of layers.
        embedding_size: size of a token's embedding; that of its state where not given.
        dropout: dropout of the embeddings and after each layer, in [0, 1).
        tokenizer: folder or Hub id of a tokenizer; where not given, one is trained on the training texts.
        vocab_size: tokens that a trained tokenizer has at most.
        lowercase: whether a trained tokenizer takes no notice of capitals.

    Raises:
        RecipeError: a value is not allowed, or would have no effect.
    """

    type: str
    hidden_size: int = 256
    num_layers: int = 2
    embedding_size: int | None = None
    dropout: float = 0.1
    tokenizer: str | None = None
    vocab_size: int | None = None
    lowercase: bool = False

    def __post_init__(self) -> None:
        if self.type != "lstm":
            raise RecipeError(f"type is {self.type!r}", mend="use 'lstm', or name a pretrained encoder")
        for key in ("hidden_size", "num_layers", "embedding_size", "vocab_size"):
            value = getattr(self, key)
            optional = key in ("embedding_size", "vocab_size") and value is None
            if not optional and (not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= 2**20):
                raise RecipeError(f"{key} is {value!r}", mend="give a whole number, at least 1")
        if self.hidden_size % 2:
            raise RecipeError(f"hidden_size is {self.hidden_size}", mend="give an even number: half for each direction")
        if not isinstance(cast(object, self.dropout), int | float) or not 0 <= self.dropout < 1:
            raise RecipeError(f"dropout is {self.dropout!r}", mend="give a number at least 0 and below 1")
        if not isinstance(cast(object, self.lowercase), bool):
            raise RecipeError(f"lowercase is {self.lowercase!r}", mend="give true or false")
        if self.tokenizer is not None:
            if not isinstance(cast(object, self.tokenizer), str) or not self.tokenizer:
                raise RecipeError(f"tokenizer is {self.tokenizer!r}", mend="give a Hub id or a folder")
            for key in ("vocab_size", "lowercase"):
                if getattr(self, key):
                    raise RecipeError(
                        f"{key} is {getattr(self, key)!r}, which a tokenizer that is given settles itself",
                        mend=f"leave {key} or tokenizer out",
                    )

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> OwnEncoder:
        """Read what a recipe says.

        Raises:
            RecipeError: a key is unknown or missing, or a value is not allowed.

        Example:
            >>> OwnEncoder.read({"type": "lstm", "num_layers": 1}).num_layers
            1
        """
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise RecipeError(f"unknown key {key!r}", where="encoder", mend=f"use {one_of(known)}")
        if "type" not in values:
            raise RecipeError("the key 'type' is missing", where="encoder", mend="write type: lstm, or name an encoder")
        try:
            return cls(**values)
        except RecipeError as error:
            raise error.at("encoder") from None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults."""
        values = asdict(self)
        return {f.name: values[f.name] for f in fields(self) if values[f.name] != f.default}

    def config(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
        """Return the configuration of the encoder for a tokenizer, which settles its vocabulary and padding."""
        from hf_mtl.model.encoders.lstm import LstmConfig

        pad = tokenizer.pad_token_id
        return LstmConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_layers,
            embedding_size=self.embedding_size,
            hidden_dropout_prob=float(self.dropout),
            pad_token_id=pad if isinstance(pad, int) else None,
        )


def train_tokenizer(
    texts: Iterable[str], *, vocab_size: int = VOCAB_SIZE, lowercase: bool = False
) -> PreTrainedTokenizerFast:
    """Train a tokenizer, byte-pair encoding of bytes; the same texts give the same tokenizer.

    Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units"
    (https://aclanthology.org/P16-1162).

    Args:
        texts: the texts.
        vocab_size: tokens that it has at most, but for the 256 bytes and the special tokens.
        lowercase: whether it takes no notice of capitals.

    Example:
        >>> tokenizer = train_tokenizer(["good songs", "good films"] * 9, vocab_size=300)
        >>> tokenizer.decode(tokenizer("good", add_special_tokens=False)["input_ids"])
        ' good'
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    # Bytes rather than characters: with marks of continuing pieces, as in WordPiece, tokenizers 0.23 numbers the pieces
    # in an order that changes from run to run.
    tokenizer = Tokenizer(models.BPE())
    if lowercase:
        tokenizer.normalizer = cast(Any, normalizers).Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = cast(Any, decoders.ByteLevel())
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL.values()), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    marks = [(SPECIAL[name], cast(int, tokenizer.token_to_id(SPECIAL[name]))) for name in ("sep_token", "cls_token")]
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=True), processors.BertProcessing(*marks)]
    )
    names: dict[str, Any] = dict(SPECIAL)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def training_texts(datasets: Mapping[str, DatasetSource], raw: Mapping[tuple[str, str], RawSplit]) -> Iterator[str]:
    """Yield the texts that training reads, the words of datasets that are given as tokens joined by spaces.

    Args:
        datasets: the datasets.
        raw: the rows by dataset and split.
    """
    for (name, split), rows in raw.items():
        for column in datasets[name].text_columns.values() if split == "train" else ():
            for value in cast(Iterable[Any], rows.dataset[column]):
                words = cast(Sequence[Any], value) if isinstance(value, list | tuple) else [value]
                yield " ".join(word for word in words if isinstance(word, str))
