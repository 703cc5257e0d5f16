"""What a kernel is, by its name: category, communication, layout conversion, norm, tensor cores. NVIDIA and AMD."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

# names as they occur in the traces of data/README.md and in the sources of cuDNN's, NCCL's, MIOpen's and ATen's kernels
COMMUNICATION = re.compile(r"^(nccl|rccl)|ncclDevKernel|ncclKernel|oneccl|nvshmem|all_?reduce_kernel|msccl", re.I)
LAYOUT = re.compile(
    r"nchwToNhwc|nhwcToNchw|nchw2nhwc|nhwc2nchw|batched_transpose_|SubTensorOpWithScalar.*transpose|"
    r"(?<![a-z])transpose_readWrite|convert_tensor_layout|transpose_(NCHW|CNHW)2(CNHW|NCHW)",
    re.I,
)
NORM = re.compile(
    r"cudnn::bn_|(?<![A-Za-z])bn_(fw|bw)|batch_?norm|BatchNorm|layer_?norm|LayerNorm|GroupNorm|group_norm|rms_?norm|RMSNorm|"
    r"RowwiseMoments|ComputeFusedParams|instance_norm|GammaBetaBackward|cuComputeGradInput|cuApplyLayerNorm",
    re.I,
)
CONVOLUTION = re.compile(
    r"conv|dgrad|wgrad|fprop|scudnn|hcudnn|winograd|implicit_gemm|igemm|computeOffsets|im2col|Im2d2Col|"
    r"cutlass_cudnn|cudnn_infer|scalePackedTensor|compute[A-Z]*OffsetsKernel|SubTensorOp",
    re.I,
)
MATMUL = re.compile(r"gemm|gemv|Cijk_|nvjet|cublas|matmul|splitK|s16816|bmm|dot_kernel|ampere_.*_tn", re.I)
ATTENTION = re.compile(r"flash|fmha|attention|attn", re.I)
OPTIMIZER = re.compile(r"multi_tensor_apply|foreach|FusedAdam|FusedSgd|adam|muon", re.I)
POOLING = re.compile(r"pool", re.I)
LOSS = re.compile(r"softmax|nll_?loss|ClassNLL|cross_entropy|mse_", re.I)
REDUCTION = re.compile(r"reduce|triton_(red|per)_", re.I)
ELEMENTWISE = re.compile(r"elementwise|vectorized|triton_poi|CatArray|copy|fill|index|gather|scatter", re.I)
TENSOR_CORES = re.compile(
    r"(?<!sub)tensorop|hmma|imma|[sdhi]?1688|16816|[hs]884|_884|wgmma|gmma|nvjet|tf32|xmma_gemm_(bf16|f16|e4m3)|hgemm|"
    r"(?<=_)MI\d+x\d+|mfma|_xdlops?|xdl_|_gtcx\d?_|FlashAttn(Fwd|Bwd)Sm|flash_(fwd|bwd)_|fmha_cutlass\w+_sm[789]",  # gtcx: MIOpen's name for xdlops
    re.I,
)
# what goes with a matmul, convolution or attention and multiplies nothing itself: tensor cores are of no use to it
HELPER = re.compile(
    r"splitKreduce|ReduceSplitK|reduce_wgrad|OffsetsKernel|scalePackedTensor|SubTensorOp|Attn(Fwd|Bwd)(Pre|Post)process|prepare_varlen|"
    r"dot_do_o|convert_d[qkv]|reduce_1Block|^triton_(poi|red|per)_",
    re.I,
)


@dataclass(frozen=True)
class Kind:
    """`tensor_cores`: True or False for matmuls, convolutions and attention, None where they are of no use."""

    category: str
    layout: bool
    norm: bool
    tensor_cores: bool | None

    @property
    def communication(self) -> bool:
        return self.category == "communication"


_ORDER = (
    ("communication", COMMUNICATION),
    ("layout", LAYOUT),
    ("norm", NORM),
    ("attention", ATTENTION),
    ("convolution", CONVOLUTION),
    ("optimizer", OPTIMIZER),
    ("matmul", MATMUL),
    ("pooling", POOLING),
    ("loss", LOSS),
    ("reduction", REDUCTION),
    ("elementwise", ELEMENTWISE),
)


@lru_cache(maxsize=65536)
def kind(name: str) -> Kind:
    """What the kernel of this name is. Unknown names are "other"."""
    short = name[:512]
    category = next((c for c, pattern in _ORDER if pattern.search(short)), "other")
    heavy = category in ("convolution", "matmul", "attention") and not HELPER.search(short)
    return Kind(category, category == "layout", category == "norm", bool(TENSOR_CORES.search(short)) if heavy else None)
