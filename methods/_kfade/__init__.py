"""K-FADE in parts: its settings (`config`), which sequences serve for what (`data`), curvature and gradient (`fit`), `step`."""
