"""Models that perfscope is tried on: built-in ones, timm's and transformers', small enough for two cores.

`ZOO` maps a name to a function that gives a Workload. Optional packages that are missing give None.
"""

from __future__ import annotations

import warnings
from functools import partial

from perfscope.workload.resolve import _complete, _named, from_config

TIMM = {  # name -> side of the input
    "resnet18": 64, "resnet26d": 64, "seresnet18": 64, "densenet121": 64, "efficientnet_b0": 64, "mobilenetv3_small_050": 64,
    "regnetx_002": 64, "convnext_atto": 64, "convnextv2_atto": 64, "vit_tiny_patch16_224": 224, "deit_tiny_patch16_224": 224,
    "mixer_s32_224": 224, "swin_tiny_patch4_window7_224": 224, "repvgg_a0": 64, "ghostnet_050": 64, "nfnet_l0": 64, "botnet26t_256": 128,
}
SMALL = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, vocab_size=512)
HF = {
    "gpt2": dict(n_embd=64, n_layer=2, n_head=4, vocab_size=512), "llama": dict(num_key_value_heads=2, **SMALL), "bert": SMALL,
    "mistral": dict(num_key_value_heads=2, **SMALL), "qwen2": dict(num_key_value_heads=2, **SMALL), "gpt_neox": SMALL,
    "opt": dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, ffn_dim=128, vocab_size=512, word_embed_proj_dim=64),
    "distilbert": dict(dim=64, n_layers=2, n_heads=4, hidden_dim=128, vocab_size=512), "albert": dict(embedding_size=64, **SMALL),
    "roberta": SMALL, "gemma": dict(num_key_value_heads=2, head_dim=16, **SMALL), "phi": SMALL,
    "t5": dict(d_model=64, d_ff=128, num_layers=2, num_heads=4, d_kv=16, vocab_size=512),
    "deberta-v2": SMALL,
    "vit": dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, image_size=32, patch_size=8),
}
BUILT_IN = ("resnet9", "resnet18_cifar", "mnist_cnn", "vit", "gpt2:tiny", "llama_tiny")


def _timm(name, side):
    from tests.zoo.timm_alone import import_timm
    timm = import_timm()
    model = timm.create_model(name, num_classes=10, **({"img_size": side} if side == 128 else {}))
    return _complete(model, f"timm:{name}", "timm", (3, side, side), 10)


def _hf(name, settings):
    import transformers
    transformers.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = transformers.AutoConfig.for_model(name, **settings)
        for token in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"):
            if getattr(config, token, None) is not None or token == "decoder_start_token_id":
                setattr(config, token, 0)
        return from_config(config, f"hf:{name}", "transformers", () if name == "vit" else (32,))


ZOO = {**{n: partial(_named, n, (), 0) for n in BUILT_IN},
       **{f"timm:{n}": partial(_timm, n, side) for n, side in TIMM.items()},
       **{f"hf:{n}": partial(_hf, n, settings) for n, settings in HF.items()}}


def __getattr__(name):
    """Every model as an attribute, so that a process of its own can build it: `--model tests.zoo.models:timm:resnet18`."""
    if name in ZOO:
        return ZOO[name]
    raise AttributeError(f"the zoo has no {name!r}")
