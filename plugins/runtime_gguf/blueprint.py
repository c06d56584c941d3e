"""What an architecture consists of: its configuration, and for each tensor of GGUF what it becomes.

An architecture is a function from a file's metadata to a :class:`Blueprint`, put together from the parts here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from runtime.errors import CheckpointCorrupt, ModelUnsupported
from runtime_gguf.metadata import Metadata

SOFTMAX, SIGMOID, SOFTMAX_OF_CHOSEN = 1, 2, 3
"""How experts are scored (``expert_gating_func``)."""


class Part(NamedTuple):
    """One tensor of GGUF, and the parameter of mlx-lm's model that it becomes."""

    gguf: str
    """GGUF's name; inside a layer without ``blk.<i>.``."""
    name: str
    """The parameter's name; inside a layer without ``model.layers.<i>.``."""
    shape: tuple[int, ...]
    """Rows first. Sides of 1 may be missing in the file."""
    heads: int | None = None
    """Number of heads whose rows llama.cpp's converter interleaved."""
    shift: float = 0.0
    """What the converter added to every element."""
    packs: bool = True
    """Whether mlx-lm's module can hold packed weights."""


class Blueprint(NamedTuple):
    """A model, apart from the values of its tensors."""

    config: dict[str, Any]
    """``config.json`` in Hugging Face's terms."""
    outside: tuple[Part, ...]
    """Tensors outside the layers."""
    layer: tuple[Part, ...] | Callable[[int], tuple[Part, ...]]
    """Tensors of a layer: the same for all, or by the layer's number."""
    unused: range = range(0)
    """Layers of the file that the model does not have: they predict further tokens."""

    def parts_of(self, layer: int) -> tuple[Part, ...]:
        """Return the tensors of one layer."""
        return self.layer(layer) if callable(self.layer) else self.layer


class Sizes(NamedTuple):
    """The numbers that every transformer has."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    """Width of the feed-forward part."""
    vocabulary: int

    @property
    def wide(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def narrow(self) -> int:
        """Width of all key heads together."""
        return self.kv_heads * self.head_dim


def read_sizes(file: Metadata, *, even_heads: bool = False) -> Sizes:
    """Read and check the sizes.

    Args:
        file: the metadata.
        even_heads: whether mlx-lm's model takes the size of a head to be hidden size / heads, and knows no other.

    Raises:
        CheckpointCorrupt: they contradict each other.
        ModelUnsupported: heads have another size than the architecture can have here.
    """
    hidden, heads = file.positive("embedding_length"), file.positive("attention.head_count")
    kv_heads = file.positive("attention.head_count_kv", heads)
    if heads % kv_heads:
        raise CheckpointCorrupt(f"{file.path} describes no model: {heads} heads, {kv_heads} key-value heads")
    head_dim = file.number("attention.key_length", hidden // heads)
    if head_dim <= 0 or head_dim % 2:
        raise CheckpointCorrupt(f"{file.path} has attention heads of size {head_dim}")
    file.require("attention.value_length", head_dim, head_dim)
    if even_heads and heads * head_dim != hidden:
        raise ModelUnsupported(
            f"{file.path} has {heads} heads of {head_dim} in a hidden size of {hidden}; of {file.architecture} only "
            "heads that divide the hidden size are converted"
        )
    return sized(file, head_dim, kv_heads)


def sized(file: Metadata, head_dim: int, kv_heads: int) -> Sizes:
    """Read the sizes that do not depend on how attention is built.

    Raises:
        CheckpointCorrupt: there are not as many layers, or there is no embedding.
    """
    embedding = file.header.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointCorrupt(f"{file.path} has no token_embd.weight")
    layers = file.positive("block_count")
    if layers > len(file.header.tensors):
        # A claim of a billion layers must not be spelt out.
        raise CheckpointCorrupt(f"{file.path} claims {layers} layers, and lacks the tensors for them")
    return Sizes(
        layers=layers,
        hidden=file.positive("embedding_length"),
        heads=file.positive("attention.head_count"),
        kv_heads=kv_heads,
        head_dim=head_dim,
        inner=file.positive("feed_forward_length"),
        vocabulary=embedding.shape[0],
    )


def rotated_part(file: Metadata, sizes: Sizes) -> tuple[int, float]:
    """Return how many dimensions of each head are rotated, and what share of the head they are.

    Raises:
        CheckpointCorrupt: it is no even number of them, or more than there are.
    """
    rotated = file.positive("rope.dimension_count", sizes.head_dim)
    share = rotated / sizes.head_dim
    if share > 1 or int(sizes.head_dim * share) != rotated or rotated % 2:
        raise CheckpointCorrupt(f"{file.path} rotates {rotated} of {sizes.head_dim} dimensions")
    return rotated, share


def base_config(file: Metadata, sizes: Sizes, model_type: str, class_name: str) -> dict[str, Any]:
    """Return the part of ``config.json`` that all architectures share."""
    return {
        "architectures": [class_name],
        "model_type": model_type,
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "intermediate_size": sizes.inner,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "hidden_act": "silu",
        "vocab_size": sizes.vocabulary,
        "max_position_embeddings": file.positive("context_length"),
        "rope_theta": file.real("rope.freq_base", 10000.0),
        "rope_scaling": None,
        "tie_word_embeddings": not file.has_tensor("output.weight"),
        # The model was published in this type; float16 is too narrow for the activations of some.
        "torch_dtype": "bfloat16",
    }


def layer_types(sliding: Iterable[bool]) -> list[str]:
    """Return Hugging Face's ``layer_types``."""
    return ["sliding_attention" if windowed else "full_attention" for windowed in sliding]


def rms_eps(file: Metadata) -> float:
    """Return the epsilon of the model's RMS norms."""
    return file.real("attention.layer_norm_rms_epsilon")


def vector(gguf: str, name: str, size: int, shift: float = 0.0) -> tuple[Part, ...]:
    """Describe a norm without a bias, or another list of numbers."""
    return (Part(f"{gguf}.weight", f"{name}.weight", (size,), shift=shift),)


def layer_norm(gguf: str, name: str, size: int) -> tuple[Part, ...]:
    """Describe a norm with a bias."""
    return (*vector(gguf, name, size), Part(f"{gguf}.bias", f"{name}.bias", (size,)))


def linear(
    gguf: str, name: str, rows: int, columns: int, *, bias: bool = False, heads: int | None = None
) -> tuple[Part, ...]:
    """Describe a linear layer."""
    weight = Part(f"{gguf}.weight", f"{name}.weight", (rows, columns), heads)
    return (weight, Part(f"{gguf}.bias", f"{name}.bias", (rows,), heads)) if bias else (weight,)


def endpoints(file: Metadata, sizes: Sizes, *, shift: float = 0.0) -> tuple[Part, ...]:
    """Describe the embedding, the final norm, and the head unless it is tied."""
    parts = linear("token_embd", "model.embed_tokens", sizes.vocabulary, sizes.hidden)
    parts += vector("output_norm", "model.norm", sizes.hidden, shift)
    if file.has_tensor("output.weight"):
        parts += linear("output", "lm_head", sizes.vocabulary, sizes.hidden)
    return parts


def attention(
    sizes: Sizes, *, bias: bool = False, output_bias: bool | None = None, interleaved: bool = False
) -> tuple[Part, ...]:
    """Describe the four projections of attention.

    Args:
        sizes: the model's.
        bias: whether queries, keys and values have biases.
        output_bias: whether the output has one; as ``bias`` where it is None.
        interleaved: whether llama.cpp's converter interleaved the rows of queries and keys.
    """
    hidden = sizes.hidden
    return (
        *linear(
            "attn_q", "self_attn.q_proj", sizes.wide, hidden, bias=bias, heads=sizes.heads if interleaved else None
        ),
        *linear(
            "attn_k", "self_attn.k_proj", sizes.narrow, hidden, bias=bias, heads=sizes.kv_heads if interleaved else None
        ),
        *linear("attn_v", "self_attn.v_proj", sizes.narrow, hidden, bias=bias),
        *linear(
            "attn_output",
            "self_attn.o_proj",
            hidden,
            sizes.wide,
            bias=bias if output_bias is None else output_bias,
        ),
    )


def head_norms(sizes: Sizes, *, shift: float = 0.0) -> tuple[Part, ...]:
    """Describe norms of each query and each key head, shared by the heads."""
    return (
        *vector("attn_q_norm", "self_attn.q_norm", sizes.head_dim, shift),
        *vector("attn_k_norm", "self_attn.k_norm", sizes.head_dim, shift),
    )


def wide_norms(sizes: Sizes) -> tuple[Part, ...]:
    """Describe norms over all query heads, and all key heads, at once."""
    return (
        *vector("attn_q_norm", "self_attn.q_norm", sizes.wide),
        *vector("attn_k_norm", "self_attn.k_norm", sizes.narrow),
    )


def pre_norms(sizes: Sizes) -> tuple[Part, ...]:
    """Describe the usual two norms: before attention, and before the feed-forward part."""
    return (
        *vector("attn_norm", "input_layernorm", sizes.hidden),
        *vector("ffn_norm", "post_attention_layernorm", sizes.hidden),
    )


def swiglu(sizes: Sizes, *, bias: bool = False) -> tuple[Part, ...]:
    """Describe a feed-forward part with a gate."""
    return (
        *linear("ffn_gate", "mlp.gate_proj", sizes.inner, sizes.hidden, bias=bias),
        *linear("ffn_up", "mlp.up_proj", sizes.inner, sizes.hidden, bias=bias),
        *linear("ffn_down", "mlp.down_proj", sizes.hidden, sizes.inner, bias=bias),
    )


def experts(sizes: Sizes, owner: str, count: int, inner: int) -> tuple[Part, ...]:
    """Describe experts and their router, below the module ``owner``."""
    return (
        Part("ffn_gate_inp.weight", f"{owner}.gate.weight", (count, sizes.hidden), packs=False),
        *stacked(sizes, f"{owner}.switch_mlp", count, inner),
    )


def stacked(sizes: Sizes, name: str, count: int, inner: int) -> tuple[Part, ...]:
    """Describe experts, which GGUF stacks as mlx-lm does."""
    wide, narrow = (count, inner, sizes.hidden), (count, sizes.hidden, inner)
    return (
        Part("ffn_gate_exps.weight", f"{name}.gate_proj.weight", wide),
        Part("ffn_up_exps.weight", f"{name}.up_proj.weight", wide),
        Part("ffn_down_exps.weight", f"{name}.down_proj.weight", narrow),
    )


def expert_counts(file: Metadata, *, normed: bool = True) -> tuple[int, int]:
    """Return the number of experts of a layer, and how many of them a token uses.

    Args:
        file: the metadata.
        normed: whether the weights of a token's experts are made to add up to one.

    Raises:
        CheckpointCorrupt: a token would use more than there are.
        ModelUnsupported: they are chosen or weighted in another way than by a softmax.
    """
    count, used = file.positive("expert_count"), file.positive("expert_used_count")
    if used > count:
        raise CheckpointCorrupt(f"{file.path} uses {used} experts of {count}")
    file.require("expert_group_count", 1, 1)
    file.ignore("expert_group_used_count")
    file.require("expert_weights_scale", 1, 1)
    if file.number("expert_gating_func", SOFTMAX) not in (SOFTMAX, SOFTMAX_OF_CHOSEN):
        raise ModelUnsupported(f"{file.path} chooses experts otherwise than by a softmax, which is not converted")
    if file.flag("expert_weights_norm", normed) != normed:
        raise ModelUnsupported(f"{file.path} weights experts otherwise than mlx-lm's model of {file.architecture}")
    return count, used
