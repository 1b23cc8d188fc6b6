"""Kronecker-factored Gauss-Newton curvature of a causal language model's MLP layers: fit, store, solve.

The matrix is the Gauss-Newton matrix (= Fisher) of the mean-per-token cross-entropy. For a linear layer with inputs a and
gradients g of the un-averaged token losses with respect to its outputs, labels sampled from the model:

    A = Σ a aᵀ / tokens            over all real positions, prompt included, padding excluded       `factors`
    S = Σ g gᵀ / labels            (labels: positions on which a loss is taken)
    A = Q_A diag(μ) Q_Aᵀ, S = Q_S diag(ν) Q_Sᵀ                                                      `spectrum`
    kfac      E_ij = ν_i μ_j                                             Martens & Grosse 2015, arXiv:1503.05671
    ekfac     E_ij = Σ_seq [(Q_Sᵀ D_seq Q_A)_ij]² / labels, D_seq = Σ_t g_t a_tᵀ   George et al. 2018, Grosse et al. 2023
    diagonal  E = Σ_seq D_seq² / labels, Q = I
    identity  E = 1, Q = I
    (G + λI)⁻¹ g = Q_S [(Q_Sᵀ g Q_A) / (E + λ)] Q_Aᵀ          ‖r‖²_G = Σ (Q_Sᵀ r Q_A)² E            `solve`

A loss summed over tokens would multiply λ by the number of labels and step sizes by its root.

Chapters, each standing on those before it: `layers` (which linear maps), `products` (summed in float32), `passes` (one pass
over data), `signals` (what goes into the backward pass), `factors`, `spectrum`, `gradients`, `solve`, `files`,
`by_curvlinops`.

Own engine: one hook per layer streams inputs and output gradients into what is wanted; no weight gradient is ever formed and
the graph begins at the first targeted layer. It departs from curvlinops-for-pytorch (also offered, as `backend=curvlinops`)
in masking padding and prompts, in accumulating in float32 whatever the model's type, and in clamping eigenvalues at 0.
"""
