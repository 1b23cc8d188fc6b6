"""ELM in parts: its settings (`config`), `words`, which texts are due (`texts`), `continuations`, `losses`."""
