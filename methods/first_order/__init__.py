"""What the first-order methods share: their recipe, their loop over pairs of forget and retain examples, parts of their losses.

Chapters: `recipe` (settings, schedule), `partners` (which retain example goes with a forget example), `loop`,
`losses`, `refusals`, and for those who need them `sophia` (SOUL's optimisers) and `adapters` (LoKU's and ELM's).
"""
