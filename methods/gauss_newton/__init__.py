"""Gauss-Newton steps in parts, which K-FADE and the predictor with its corrector share.

Chapters: `config` (K-FADE's settings), `data` (which sequences serve for what), `fit` (curvature and gradient), `step`,
`corrector` (the way back down the KL), `corrector_config`, `memory`.
"""
