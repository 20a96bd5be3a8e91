"""The Llamas of `transformers` with random weights, in float64, beside ours with the same."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from llmpy.models.llama import LlamaConfig, llama_table
from llmpy.models.parameters import Parameters, ParameterSpec, total_size


def foreign_config(transformers: Any, config: LlamaConfig) -> Any:
    """Theirs of the same shape; the rotation is always theirs."""
    scaling = config.rope_scaling
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if scaling is not None:
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    shape = {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "hidden_size": config.channels,
        "intermediate_size": config.hidden,
        "head_dim": config.head_size,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "rope_parameters": rope,
        "attn_implementation": "eager",
    }
    return (transformers.Qwen2Config if config.qkv_bias else transformers.LlamaConfig)(**shape)


@dataclass
class Foreign:
    """`model` is theirs; `parameters()` and `gradients()` are its numbers in the form of ours, float64."""

    config: LlamaConfig
    model: Any

    @classmethod
    def make(cls, torch: Any, transformers: Any, config: LlamaConfig, seed: int) -> "Foreign":
        foreign = transformers.Qwen2ForCausalLM if config.qkv_bias else transformers.LlamaForCausalLM
        torch.manual_seed(seed)
        model = foreign(foreign_config(transformers, config)).double()
        with torch.no_grad():  # norms and biases that are not 1 and 0: those hide mistakes
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        return cls(config, model)

    def parameters(self) -> Parameters:
        return self._ours(lambda tensor: tensor)

    def gradients(self) -> Parameters:
        return self._ours(lambda tensor: tensor.grad)

    def _ours(self, of: Any) -> Parameters:
        named = dict(self.model.named_parameters())
        table = llama_table(self.config)
        result = Parameters(table, np.empty(total_size(table)))
        for spec, view in result.items():
            for layer, part in enumerate(view if spec.per_layer else [view]):
                pieces = spec.parts or ((spec.huggingface, len(part)),)
                part[...] = np.concatenate([of(named[name.format(layer)]).detach().numpy() for name, _ in pieces])
            if self.config.rope_interleaved:
                self._interleave(spec, view)
        return result

    def _interleave(self, spec: ParameterSpec, view: np.ndarray) -> None:
        """Rows of q and k from half a head apart to neighbours, so that our rotation does the same with them."""
        if spec.name in ("qkvw", "qkvb"):
            hs = self.config.head_size
            turned = view[:, : (self.config.heads + self.config.kv_heads) * hs]
            halves = turned.reshape(len(view), -1, 2, hs // 2, *view.shape[2:])
            turned[...] = halves.swapaxes(2, 3).reshape(turned.shape)

    def loss(self, tokens: Any, targets: Any, torch: Any) -> Any:
        logits = self.model(tokens).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
