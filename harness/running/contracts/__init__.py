"""What every plug-in promises, checked on anybody's file: `harness test-plugin FILE`. The built-in ones are tested by the same.

A check is a function that raises `Broken` with one sentence; anything else that it raises is the plug-in's own fault, and told
as that. Nothing is downloaded or trained: the models are tiny random Llamas over a benchmark's own questions.
"""
