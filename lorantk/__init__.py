"""lorantk: tangent kernels and Fisher information of full fine-tuning and of LoRA.

The companion package of the book that checks "Does Low Rank Adaptation Lead to Lower Robustness against
Training-Time Attacks?" (Liang et al., ICML 2025). Every public name is importable from here.
"""

from .attacks import flip_labels, gradient_alignment, insert_trigger
from .factors import LayerFactors
from .fisher import fisher_spectrum, fisher_trace
from .kernels import lora_ntk_sweep, ntk
from .limits import infinite_width_ntk
from .lora import Adapter, LoRA, attach, read_peft
from .models import mlp
from .operators import TangentKernel
from .spectra import (
    cosine_law,
    delta_matrix,
    information_bits,
    is_negative_semidefinite,
    kernel_scale,
    marchenko_pastur_edges,
    nsd_variance_bound,
    order_certificate,
    order_interval,
    renyi_entropy,
)

__all__ = [
    "Adapter",
    "LayerFactors",
    "LoRA",
    "TangentKernel",
    "attach",
    "cosine_law",
    "delta_matrix",
    "fisher_spectrum",
    "fisher_trace",
    "flip_labels",
    "gradient_alignment",
    "infinite_width_ntk",
    "information_bits",
    "insert_trigger",
    "is_negative_semidefinite",
    "kernel_scale",
    "lora_ntk_sweep",
    "marchenko_pastur_edges",
    "mlp",
    "nsd_variance_bound",
    "ntk",
    "order_certificate",
    "order_interval",
    "read_peft",
    "renyi_entropy",
]
