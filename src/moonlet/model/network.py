"""The whole network, in one line of flow that trains and serves.

    input_ids -> embed_tokens -> [features of images and video chunks put in place of their
        placeholders] -> layers -> norm -> lm_head -> logits
    patches -> vision_tower -> mm_projector -> features
    layer:  x + self_attn(input_layernorm(x));  x + mlp(post_attention_layernorm(x))

Module names are the canonical tensor names of `moonlet.config.tensors`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moonlet.config import ModelConfig
from moonlet.errors import EngineError
from moonlet.model.attention import LatentAttention
from moonlet.model.cache import LatentCache, Past
from moonlet.model.layers import RMSNorm, SwiGLU
from moonlet.model.moe import MoE, Router
from moonlet.model.rotary import text_rotation
from moonlet.model.vision import Grid, Projector, VisionTower


@dataclass(frozen=True)
class Media:
    """Images and video chunks of a batch, in the order of their placeholders.

    patches: [P, 3, patch, patch], normalised; grids: (frames, rows, columns) of each item.
    """

    patches: Tensor
    grids: Sequence[Grid]


class DecoderLayer(nn.Module):
    def __init__(self, config: ModelConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = LatentAttention(config, layer_idx)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        is_dense = layer_idx < config.first_k_dense_replace
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size) if is_dense else MoE(config)

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], past: Past, absorbed: bool | None
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotation, past, absorbed)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        table = torch.empty(config.vocab_size, config.hidden_size)  # else it is initialised twice,
        # which on the meta device loads a second of torch's compiler
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, _weight=table)
        self.layers = nn.ModuleList(
            DecoderLayer(config, i) for i in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], past: Past, absorbed: bool | None
    ) -> Tensor:
        """x [B, T, D], the embedded tokens -> their final states, normed."""
        for layer in self.layers:
            x = layer(x, rotation, past, absorbed)
        return self.norm(x)


class LanguageModel(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)


class Model(nn.Module):
    """A model of the family; text-only configurations have no tower and no projector.

    Built under `torch.device("meta")` it takes no memory; otherwise its weights are initialised.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.language_model = LanguageModel(config)
        self.vision_tower = VisionTower(config.vision) if config.vision else None
        self.mm_projector = Projector(config.vision, config.hidden_size) if config.vision else None
        self.cache_dtype: torch.dtype | None = None  # None: the type of the weights
        if self.language_model.lm_head.weight.device.type != "meta":
            self.init_weights()

    def forward(
        self,
        input_ids: Tensor,
        *,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        media: Media | None = None,
        cache: LatentCache | None = None,
        absorbed: bool | None = None,
    ) -> Tensor:
        """Logits [B, T, vocab_size] for `input_ids` [B, T]; arguments as for `hidden`."""
        hidden = self.hidden(
            input_ids,
            positions=positions,
            segments=segments,
            media=media,
            cache=cache,
            absorbed=absorbed,
        )
        return self.logits(hidden)

    def hidden(
        self,
        input_ids: Tensor,
        *,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        media: Media | None = None,
        cache: LatentCache | None = None,
        pages: Tensor | None = None,
        absorbed: bool | None = None,
    ) -> Tensor:
        """Final hidden states [B, T, hidden_size], normed.

        positions [B, T]: where each token stands; by default they follow what the cache holds.
        segments [B, T]: document numbers of a packed batch (without a cache); a token sees only
        earlier tokens of its own document. Batches of different lengths are padded on the right:
        causal order keeps padding out of sight.
        pages [B, n]: the pages of each sequence in a cache that many share; positions must be given then.

        Raises EngineError when media and placeholders do not match or the cache is full.
        """
        if positions is None:
            start = cache.length if cache is not None else 0
            positions = torch.arange(start, start + input_ids.shape[1], device=input_ids.device)
            positions = positions.expand(input_ids.shape[0], -1)
        x = self._embed(input_ids, media)
        rotation = text_rotation(positions, self.config.rope, self.config.qk_rope_head_dim)
        past = Past(cache, positions, segments, pages)
        return self.language_model.model(x, rotation, past, absorbed)

    def new_cache(self, pages: int, page_size: int) -> LatentCache:
        """Pages, or a page for each sequence, in the type and on the device that this model computes with."""
        if self.cache_dtype is not None:
            return LatentCache(self.config, pages, page_size, self.cache_dtype)
        weight = self.language_model.lm_head.weight
        return LatentCache(self.config, pages, page_size, weight.dtype, weight.device)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.language_model.lm_head(hidden)

    def _embed(self, input_ids: Tensor, media: Media | None) -> Tensor:
        x = self.language_model.model.embed_tokens(input_ids)
        if media is None:
            return x
        if self.vision_tower is None or self.mm_projector is None:
            raise EngineError("this model has no vision tower, so it takes no images or video")
        weight = self.vision_tower.patch_embed.proj.weight
        features = self.mm_projector(self.vision_tower(media.patches.to(weight), media.grids))
        is_media = input_ids == self.config.media_placeholder_token_id
        if int(is_media.sum()) != features.shape[0]:
            raise EngineError(
                f"{int(is_media.sum())} media placeholders in the tokens, but the media items make {features.shape[0]}"
            )
        return x.masked_scatter(is_media[..., None], features.to(x.dtype))

    @torch.no_grad()
    def init_weights(self, seed: int = 0) -> None:
        """Normal(0, initializer_range) for matrices and tables, one for norm gains, zero for biases.

        The published tower starts its position table at Normal(0, 1), which drowns the patches of a
        tower that is trained from nothing. Same seed, same weights.
        """
        generator = torch.Generator().manual_seed(seed)
        std = self.config.initializer_range
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, RMSNorm):
                module.weight.fill_(1.0)
            else:
                for name, parameter in module.named_parameters(recurse=False):
                    if name == "bias":
                        parameter.zero_()
                    else:
                        parameter.normal_(0.0, std, generator=generator)
            if isinstance(module, Router) and module.e_score_correction_bias is not None:
                module.e_score_correction_bias.zero_()
