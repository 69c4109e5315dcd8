"""How the poster prints each statement: its place there, and its formula or conclusion, quoted short."""

PRINTED: dict[str, tuple[str, str]] = {
    "eq-1": ("Equation 1", r"\(W' = W + \Delta W,\ \Delta W = B A\)"),
    "eq-2": ("Equation 2", r"\(K_{ntk}(x, x') = \nabla_\theta F(x;\theta)^T\, \nabla_\theta F(x';\theta)\)"),
    "ntk-limit": ("After equation 2", "as the width approaches infinity the kernel is deterministic; full fine-tuning"),
    "ntk-limit-lora": ("After equation 2", "as the width approaches infinity the kernel is deterministic; LoRA"),
    "ntk-constant": ("After equation 2", "the kernel stays constant in every training step; full fine-tuning"),
    "ntk-constant-lora": ("After equation 2", "the kernel stays constant in every training step; LoRA"),
    "eq-3": (
        "Equation 3",
        r"maximise \(|\nabla_\theta\mathcal{L}(x_c,\theta)^T\, \nabla_\theta\mathcal{L}(x_u,\theta)|\)",
    ),
    "eq-4": (
        "Equation 4",
        r"minimise \(|\nabla_\theta\mathcal{L}(x_c,\theta)^T\, \nabla_\theta\mathcal{L}(x_t,\theta)|\)",
    ),
    "thm-fisher": (
        "Theorem on the kernel and Fisher information, equation 5",
        r"\(I_\theta =\) \(\mathbb{E}[\nabla_F\mathcal{L}^T\, K_{ntk}(x, x)\, \nabla_F\mathcal{L}]\) at infinite width",
    ),
    "eq-6": (
        "Equation 6",
        r"\(\mathbf{IB} = \frac12\log\det_{\text{pseudo}} I\) \(= \frac12\sum_{\lambda_i>0}\lambda_i\)",
    ),
    "eq-7": (
        "Equation 7",
        r"\(H_\alpha = \frac{1}{1-\alpha}\log\sum_i \lambda_i^\alpha\); \(H_1\) is Shannon's; "
        r"\(H_\infty = \max_i \lambda_i\)",
    ),
    "eq-8": ("Equation 8", r"\(K^{(1)} = x^T x'\), \(K^{(l)} = K^{(l-1)}\dot\Sigma^{(l)} + \Sigma^{(l)}\)"),
    "eq-9": (
        "Equation 9",
        r"\(\Sigma^l = \mathbb{E}_{f\sim\mathcal{N}(0,\Sigma^{l-1})}[\sigma(f)^T\sigma(f)]\) "
        r"\(= \sum_j \sigma(y_j)^T\sigma(y_j)\)",
    ),
    "lem-lora-ntk": (
        "Lemma on the kernel of LoRA, equation 10",
        r"\(K_{LoRA}^{(l)} = K_{LoRA}^{(l-1)}\dot\Sigma^{(l)}\) \(+\ \sigma(y)^T A^T A\,\sigma(y')\)",
    ),
    "thm-relation": (
        "Theorem on the two kernels, equation 11",
        r"\(K_{LoRA}^{(l)} = K_{ff}^{(l)}\) \(+\ \sigma(y)^T (A^T A - I)\,\sigma(y')\)",
    ),
    "thm-nsd": (
        "Theorem on negative semi-definiteness",
        r"\(\sigma_a^2 < 1/n,\ r \le n\) \(\Rightarrow M_\Delta \preceq 0\), "
        r"with \(r\) eigenvalues \(\sigma_a^2 n\) and \(n - r\) equal to 0",
    ),
    "cor-ideal": (
        "Corollary on full rank",
        r"\(r = n,\ \sigma_a^2 = 1/n,\ n\to\infty\) \(\Rightarrow M_\Delta \to 0\), \(K_{LoRA} \equiv K_{ff}\)",
    ),
    "thm-ib": ("Last theorem", r"\(M_\Delta \preceq 0 \Rightarrow \mathbf{IB}_{ff} \ge \mathbf{IB}_{LoRA}\)"),
    "thm-renyi": ("Last theorem", r"\(M_\Delta \preceq 0\) \(\Rightarrow H_{\alpha,ff} \ge H_{\alpha,LoRA}\)"),
}
"""Statement's id -> (place on the poster, what is printed there); statements that are ours are absent."""

PAPER = "https://arxiv.org/abs/2505.12871"
"""The paper that the poster presents; proceedings: PMLR 267:37181-37207."""
